"""Where is this brain unlike a healthy one? Unsupervised anomaly detection in brain MRI.

Names are imported when first used, so importing the package is fast.

Examples:
    >>> from importlib.resources import files
    >>> import brainuad
    >>> demo = files("brainuad.assets") / "demo"
    >>> tumour, brain = demo / "BraTS2021_01484_t1.nii.gz", demo / "BraTS2021_01484_mask.nii.gz"
    >>> result = brainuad.score(tumour, "lite-t1", brain_mask=brain)
    >>> result.anomaly.shape  # the scan's own grid
    (68, 89, 69)
    >>> result.findings[0].region
    'right parietal white matter'
    >>> result.findings[0].healthy_alike  # of 35 healthy scans
    0
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from brainuad._version import __version__
from brainuad.errors import InputError

if TYPE_CHECKING:
    from brainuad import data, evaluation, models, scoring
    from brainuad.data.volume import Volume
    from brainuad.detector import Detector, load_model
    from brainuad.scan import ScoreResult, score

_HOMES = {
    "Detector": "brainuad.detector",
    "ScoreResult": "brainuad.scan",
    "Volume": "brainuad.data.volume",
    "load_model": "brainuad.detector",
    "score": "brainuad.scan",
}
_ROOMS = ("data", "evaluation", "models", "scoring")

__all__ = [
    "Detector",
    "InputError",
    "ScoreResult",
    "Volume",
    "__version__",
    "data",
    "evaluation",
    "load_model",
    "models",
    "score",
    "scoring",
]


def __getattr__(name: str) -> Any:
    """Import a public name or room when it is first asked for (PEP 562)."""
    if name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    if name in _ROOMS:
        return import_module(f"brainuad.{name}")
    raise AttributeError(f"module 'brainuad' has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the public names."""
    return sorted({*globals(), *__all__})
