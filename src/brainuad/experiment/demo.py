"""The demo: the shipped scans with the shipped model; a table, a picture of every scan, a page of the real lesions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

import pandas as pd

from brainuad.config import SSIM_SIGMAS
from brainuad.data.cohort import Case, manifest_cases
from brainuad.data.loading import PreparedCase
from brainuad.detector import Detector, Maps, load_model
from brainuad.errors import InputError
from brainuad.files import write_bytes, write_text
from brainuad.inputs.scans import find_scans
from brainuad.record import FIRST_COLOUR, FULL_COLOUR
from brainuad.report.montage import Overlay
from brainuad.report.page import build_report
from brainuad.scan.run import Settings, score_scans
from brainuad.scoring.health import MOMENT_MAPS
from brainuad.scoring.names import IMAGE, INTENSITY_ATLAS, OWN_MAP, relative_name
from brainuad.scoring.rarity import RARITY
from brainuad.scoring.repertoire import SCORE
from brainuad.study import QUICK, evaluate_cases, failures, wide
from brainuad.study.figures import draw_montage
from brainuad.study.protocol import healthy_name

MODEL = "lite-t1"
BASELINES = ("intensity_dark", INTENSITY_ATLAS)  # without a model
RELATIVE = tuple(
    relative_name(base) for base in MOMENT_MAPS if base not in (IMAGE, OWN_MAP)
)  # relative to healthy scans at the same voxel
SCORES = (RARITY, *BASELINES, "l1", *(f"ssim_{sigma:g}" for sigma in SSIM_SIGMAS), SCORE, "l1_ssim", *RELATIVE)
OWN = (OWN_MAP, relative_name(OWN_MAP))  # of models that make a map
PICTURED = {"l1": "L1", SCORE: "SSIM ensemble", RARITY: "rarity in health, over scales", OWN_MAP: "the model's own map"}
MEASURES = ("average_precision", "best_dice")
MARKED = 0.01  # fraction of healthy brain voxels above the threshold of which the groups say what it marks

Report = Callable[[str, int], None]


@dataclass(frozen=True)
class Demo:
    """The demo's results.

    Attributes:
        cases: One row a case and score; see `brainuad.study.wide`.
        table: One row a score; for each group with lesions, mean average precision and mean best Dice.
        groups: One row a group: scans, chance level of average precision (fraction of brain voxels in lesions), and for
            healthy scans the fraction of the brain above each pictured score's threshold for ``MARKED``.
        results: The CSV with both, one row a score and group.
        pictures: One PNG a case.
        page: ``report.html`` of the scans with real lesions, scored as ``brainuad score`` does.
    """

    cases: pd.DataFrame
    table: pd.DataFrame
    groups: pd.DataFrame
    results: Path
    pictures: list[Path]
    page: Path


def run_demo(
    output: str | Path, *, device: str = "auto", seed: int = 0, report: Report = lambda step, total: None
) -> Demo:
    """Score the shipped scans with the shipped model.

    Args:
        output: Folder for ``report.html``, ``results.csv`` and one picture a case; working files are in ``evaluation``
            and ``scored``, from which a rerun continues.
        device: "auto", "cpu", "cuda" or "mps".
        seed: Seed of the noise.
        report: Called after each case with the step and its number of cases.

    Raises:
        InputError: The folder cannot be written to.
    """
    with as_file(files("brainuad.assets") / "demo") as folder:
        cohort = manifest_cases(folder / "manifest.csv")
        return score_cohort(load_model(MODEL, device), cohort, Path(output), seed, report)


def score_cohort(
    detector: Detector, cohort: Sequence[Case], output: Path, seed: int = 0, report: Report = lambda step, total: None
) -> Demo:
    """Do the same as `run_demo` for any calibrated detector and cohort."""
    table = evaluate_cases(
        detector,
        cohort,
        output / "evaluation",
        scores=[name for name in (*SCORES, *OWN) if detector.scores.makes(name)],
        baselines=False,
        protocol=QUICK,
        seed=seed,
        progress=lambda case, message: report("scoring", len(cohort)),
        on_scored=lambda prepared, maps: draw_case(detector, prepared, maps, output / f"{prepared.case.subject}.png"),
    )
    failed = failures(table)
    if len(failed):
        raise InputError(failed.iloc[0]["case"], failed.iloc[0]["message"], "Install brainuad again")
    cases = wide(table)
    order = {name: place for place, name in enumerate(dict.fromkeys(case.dataset for case in cohort))}
    cases = cases.sort_values("set", key=lambda names: names.map(order), kind="stable", ignore_index=True)
    table, groups = summarise_groups(cases)
    results = output / "results.csv"
    write_text(results, long_table(table, groups).to_csv(index=False))
    pictures = [output / f"{case.subject}.png" for case in cohort]
    page = output / "report.html"
    write_bytes(page, write_page(detector, cohort, output / "scored", seed, report).read_bytes())
    return Demo(cases, table, groups, results, pictures, page)


def write_page(detector: Detector, cohort: Sequence[Case], output: Path, seed: int, report: Report) -> Path:
    """Score a cohort's scans with real lesions as a user's scans are scored, and return the page that shows them."""
    shown = [case for case in cohort if case.lesion is not None and "(real" in case.dataset]
    scans = find_scans([case.image for case in shown], modality=detector.modality, output=output)
    masks = shown[0].mask.parent
    settings = Settings(detector.scores.default, seed=seed, brain_mask=masks, lesion_mask=masks)
    score_scans(scans, detector, output, settings, report=lambda row, skipped: report("page", len(shown)))
    return build_report(output)


def draw_case(detector: Detector, prepared: PreparedCase, maps: Maps, path: Path) -> None:
    """Draw one case with the maps of ``PICTURED``, on colour scales calibrated on healthy scans."""
    overlays = [
        Overlay(title, maps.final[name], *(healthy_threshold(detector, name, at) for at in (FIRST_COLOUR, FULL_COLOUR)))
        for name, title in PICTURED.items()
        if name in maps.final
    ]
    title = f"{prepared.case.subject} · {prepared.case.dataset} · {detector.name}"
    draw_montage(prepared, maps.reconstruction, overlays, path, title, in_atlas=detector.data_config.affine == "used")


def healthy_threshold(detector: Detector, score: str, fraction: float) -> float:
    """Return the map value that a fraction of healthy brain voxels exceeds, from the model's calibration.

    Raises:
        InputError: The model has no calibration for the score.
    """
    if detector.calibration is None:
        raise InputError(detector.name, "has no calibration", "Use the shipped model")
    return detector.calibration.threshold(score, fraction)


def summarise_groups(cases: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the table of scores by group with lesions, and the groups themselves, in the order of the cases.

    Args:
        cases: One row a case and score, with columns set, score, average_precision, best_dice, chance, and the fraction
            of the brain above the threshold for ``MARKED``.
    """
    first = cases[cases["score"] == cases["score"].iloc[0]]
    groups = first.groupby("set", sort=False).agg(n=("case", "size"), chance=("chance", "mean"))
    with_lesions = cases["set"].isin(groups.index[groups["chance"].notna()])
    for name in cases["score"][cases["score"].isin(PICTURED)].unique():
        healthy = cases[~with_lesions & (cases["score"] == name)]
        groups[f"{name} marks"] = healthy.groupby("set")[f"above@{healthy_name(MARKED)}"].mean()
    sick = cases[with_lesions]
    table = sick.pivot_table(index="score", columns="set", values=list(MEASURES), aggfunc="mean", sort=False)
    table = table.swaplevel(axis=1).reindex(
        index=[name for name in (*SCORES, *OWN) if name in table.index],
        columns=[(group, measure) for group in sick["set"].unique() for measure in MEASURES],
    )
    table.columns = [f"{group}: {measure.replace('_', ' ')}" for group, measure in table.columns]
    return table.round(4), groups


def long_table(table: pd.DataFrame, groups: pd.DataFrame) -> pd.DataFrame:
    """Return one row a score and group: score, group, n, chance, average_precision, best_dice."""
    rows = []
    for name, group in groups[groups["chance"].notna()].iterrows():
        for score, values in table.iterrows():
            precision, dice = (values[f"{name}: {measure}"] for measure in ("average precision", "best dice"))
            place = {"score": score, "group": name, "n": int(group["n"]), "chance": round(group["chance"], 4)}
            rows.append(place | {"average_precision": precision, "best_dice": dice})
    return pd.DataFrame(rows)
