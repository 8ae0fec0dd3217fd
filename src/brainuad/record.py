"""The typed contents of a scan's JSON sidecar, to JSON and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from statistics import median
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from brainuad._version import __version__

if TYPE_CHECKING:
    from pydantic import TypeAdapter

Point = tuple[float, float, float]

# fractions of healthy brain voxels above the first and the brightest colour of a map
FIRST_COLOUR, FULL_COLOUR = 0.05, 0.001
FEW_HEALTHY = "the model was calibrated on only"  # how the warning of few healthy scans begins
SCALE_MEANING = f"red: {FIRST_COLOUR:.0%} of healthy brain is higher · yellow: {FULL_COLOUR:.1%}, or the highest"


class _Finite:
    """Its numbers are finite when they come from a file."""

    __pydantic_config__: ClassVar = {"allow_inf_nan": False}


@dataclass(frozen=True)
class Finding(_Finite):
    """A connected region of high anomaly, measured on the scan's grid.

    Attributes:
        label: Its value in the image of findings; 1 is the first of the list.
        voxels: Voxels of the scan.
        ml: Volume in mL.
        peak: Highest value of the anomaly map in it.
        mean: Mean value of the anomaly map in it.
        centre_mm: Its voxel nearest to its centre of mass, in scanner mm (RAS+).
        atlas_mm: The same in mm of the SRI24 atlas.
        mni_mm: The same in mm of MNI152 (ICBM 2009c), by one affine from SRI24.
        side: "left", "right", or "midline" where the centre is within 4 mm of the atlas's midline.
        region: Name of the atlas region that holds most of its voxels, or "".
        healthy_alike: Number of healthy scans of the calibration with a finding at least as high and as large, or None
            where the calibration keeps no findings.
        rare: Whether fewer than 1 in 20 healthy scans have one, or None.
    """

    label: int
    voxels: int
    ml: float
    peak: float
    mean: float
    centre_mm: Point
    atlas_mm: Point
    mni_mm: Point
    side: str
    region: str = ""
    healthy_alike: int | None = None
    rare: bool | None = None


@dataclass(frozen=True)
class Spread(_Finite):
    """Median, lowest and highest of one number over the healthy scans."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Compute them from one number per scan, of at least one scan."""
        return cls(float(median(values)), float(min(values)), float(max(values)))


@dataclass(frozen=True)
class HealthyRange(_Finite):
    """The findings of healthy scans at the threshold, or at that for a larger fraction.

    Attributes:
        fraction: Fraction of healthy brain voxels above the threshold.
        count: Number of findings of a scan.
        ml: Their total volume, in mL of this head.
    """

    fraction: float
    count: Spread
    ml: Spread


@dataclass(frozen=True)
class Scale(_Finite):
    """The calibration of map values on healthy scans.

    Attributes:
        scans: Healthy scans it was measured on.
        fraction: Fraction of healthy brain voxels at or above ``threshold``.
        threshold: Map value from which on voxels belong to findings.
        interval: 95 % bootstrap interval of the threshold, or None.
        first_colour: Map value that 5 % of healthy brain voxels reach.
        full_colour: Map value that 0.1 % of healthy brain voxels reach.
        healthy_findings: The findings of healthy scans, or None.
    """

    scans: int
    fraction: float
    threshold: float
    interval: tuple[float, float] | None
    first_colour: float
    full_colour: float
    healthy_findings: HealthyRange | None = None


@dataclass(frozen=True)
class ScanSource(_Finite):
    """Where a scan came from.

    Attributes:
        source: Its file, or the folder of its DICOM series; "" of an array in memory.
        kind: "nifti", "bids" or "dicom".
        series: Hash of a DICOM series' UID, or "".
        sha256: Hash of its contents, or "".
        shape: Voxels along each axis as stored.
        spacing_mm: Voxel size.
        orientation: Axes as stored, such as "LAS".
    """

    source: str
    kind: str
    series: str = ""
    sha256: str = ""
    shape: tuple[int, ...] = ()
    spacing_mm: tuple[float, ...] = ()
    orientation: str = ""


@dataclass(frozen=True)
class ModelUsed:
    """Name, fingerprint of the weights and settings, and modality of a model."""

    name: str
    fingerprint: str
    modality: str


@dataclass(frozen=True)
class ScoredWith(_Finite):
    """The settings of a run: the score, the fraction of healthy voxels to mark, the seed, device and precision."""

    score: str
    fpr: float
    seed: int
    device: str
    precision: str = ""


@dataclass(frozen=True)
class BrainFound(_Finite):
    """How the brain was found ("given", "extracted" or "deepbet"), and its volume in mL."""

    source: str
    ml: float


@dataclass(frozen=True)
class ScanScore(_Finite):
    """Mean of the map over the brain, and the percentage of healthy scans with less, where that is known."""

    value: float
    percentile: float | None


@dataclass(frozen=True, kw_only=True)
class Record(_Finite):
    """A scored scan.

    Attributes:
        name: Of the scan, unique within a run.
        scan: Where it came from.
        model: What scored it.
        settings: How.
        calibration: What healthy scans say, or None for a model without calibration.
        brain: What was found of the brain.
        alignment: Correlation of the registered scan with the atlas.
        score: Of the whole scan.
        warnings: What a person should know before trusting the map.
        findings: Rarest first, equally rare ones by volume.
        seconds: Time by step.
        outputs: File names, relative to the sidecar, by content: "anomaly", "lesions", "montage" ...
        brain_mask: The mask that was given, if any.
        lesion_mask: Ground truth, if any.
        recipe: Key of all that could change the results.
    """

    brainuad: str = __version__
    status: Literal["done"] = "done"
    name: str = ""
    scan: ScanSource
    model: ModelUsed
    settings: ScoredWith
    calibration: Scale | None
    brain: BrainFound
    alignment: float
    score: ScanScore
    warnings: list[str]
    findings: list[Finding]
    seconds: dict[str, float]
    outputs: dict[str, str] = field(default_factory=dict)
    brain_mask: str | None = None
    lesion_mask: str | None = None
    recipe: str = ""

    @property
    def rare(self) -> int | None:
        """How many findings are rarer than in 1 of 20 healthy scans, or None where that is not known."""
        known = self.calibration is not None and self.calibration.healthy_findings is not None
        return sum(finding.rare is True for finding in self.findings) if known else None

    @property
    def lesion_ml(self) -> float:
        """Volume of all findings in mL."""
        return sum(finding.ml for finding in self.findings)


@dataclass(frozen=True, kw_only=True)
class Failure(_Finite):
    """A scan that could not be scored: its name, why, after how many seconds, and where it came from."""

    brainuad: str = __version__
    status: Literal["failed"] = "failed"
    name: str
    message: str
    seconds: float
    scan: ScanSource


def to_json(record: Record | Failure) -> dict[str, Any]:
    """Return what a sidecar holds."""
    return asdict(record)


def from_json(value: Any) -> Record | Failure | None:
    """Check what a JSON file holds; None if it is no sidecar at all.

    Raises:
        ValueError: It is a sidecar with a part that is missing or wrong; the message names the first.
    """
    from pydantic import ValidationError  # slow to import, and not needed to score

    if not isinstance(value, dict) or "brainuad" not in value or "scan" not in value:
        return None
    try:
        record = _sidecars().validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(step) for step in first["loc"][1:])
        raise ValueError(f"{place}: {first['msg']}" if place else first["msg"]) from error
    scale = record.calibration if isinstance(record, Record) else None
    if scale is not None and not scale.full_colour > scale.first_colour:
        raise ValueError(f"the colour scale ends at {scale.full_colour:g}, before it begins")
    return record


@cache
def _sidecars() -> TypeAdapter[Record | Failure]:
    from typing import Annotated

    from pydantic import Field, TypeAdapter

    return TypeAdapter(Annotated[Record | Failure, Field(discriminator="status")])
