from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from brainuad.data.cohort import Case
from brainuad.data.loading import PreparedCase
from brainuad.data.regions import mni_of
from brainuad.data.volume import Volume
from brainuad.evaluation.froc import Froc
from brainuad.report.montage import choose_slices, montage
from brainuad.study import figures
from brainuad.study.figures import _dice_against_threshold, _draw_froc, draw_montage
from brainuad.study.protocol import HEALTHY, VALIDATION

DEMO = Path(__file__).parents[2] / "src/brainuad/assets/demo"


def test_the_froc_curve_never_runs_backwards_and_shows_the_sensitivities_of_the_tables():
    rates, found = np.array([2, 60, 33, 40, 23, 27, 0]), np.array([9, 6, 4, 5, 5, 3, 1])  # the loosest threshold first
    counts = np.zeros((7, 8), dtype=int)
    counts[:, 0] = found
    froc = Froc(np.arange(7.0), 10, np.array([10, 0, 0, 0, 0, 0, 0, 0]), counts, rates)
    axis = Figure().subplots()
    curve = {"false_positives_per_scan": froc.false_positives_a_scan().tolist(), "sensitivity": froc.sensitivity()}
    _draw_froc(axis, curve, "l1", "C0")
    across, up = axis.lines[0].get_data()
    assert (np.diff(across) >= 0).all()
    assert (np.diff(up) >= 0).all()
    for rate in (2.7, 3.9, 5.9):
        assert up[across <= rate].max() == pytest.approx(froc.sensitivity_at(rate))


def test_thresholds_are_named_in_the_legend_and_nowhere_in_the_curve():
    recall = {"threshold": [0, 1, 2], "recall": [1, 0.5, 0], "precision": [0.1, 0.5, 1]}
    found = dict(zip((*HEALTHY, VALIDATION), (1, 1.1, 1.2, 1.3, 1.25), strict=True))
    summary = {"scores": ["l1"], "thresholds": [{"set": "all", "thresholds": {"l1": found}}]}
    test = pd.DataFrame({"set": ["A"], "score": ["l1"], "threshold@oracle": [1.4]})
    figure = _dice_against_threshold({"A": {"l1": {"precision_recall": recall}}}, summary, test)
    (axis,) = figure.axes
    assert not axis.texts
    handles, names = axis.get_legend_handles_labels()
    assert names == [*found, "oracle, middle half"]
    assert len({handle.get_color() for handle in handles[:-1]}) == len(found)


@pytest.mark.parametrize("in_atlas", [True, False])
def test_slices_of_a_case_carry_mni_mm_where_it_is_in_atlas_space(tmp_path, monkeypatch, in_atlas):
    scan, mask = (Volume.load(DEMO / f"patient19_{kind}.nii.gz") for kind in ("t1", "mask"))
    case = Case("patient19", "MSLUB", "test", DEMO / "t1.nii.gz", DEMO / "mask.nii.gz", None, 0, None)  # not opened
    prepared = PreparedCase(case, scan.array / 255, mask.inside, None, scan.affine)
    drawn = []

    def kept(*values, **named):
        drawn.append(montage(*values, **named))
        return drawn[-1]

    monkeypatch.setattr(figures, "montage", kept)
    draw_montage(prepared, None, [], tmp_path / "a.png", "title", in_atlas=in_atlas)
    names = [axis.texts[0].get_text() for axis in drawn[0].axes if axis.texts]
    slices = choose_slices(mask.inside, None)
    if not in_atlas:
        assert names == [f"slice {z}" for z in slices]
        return
    centre = [*(np.array(scan.array.shape[:2]) / 2), 0, 1]
    for name, z in zip(names, slices, strict=True):
        centre[2] = z
        assert name == f"MNI z = {mni_of((scan.affine @ centre)[:3])[2]:.0f} mm"
