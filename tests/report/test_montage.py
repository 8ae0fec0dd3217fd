import io
from pathlib import Path

import numpy as np
import pytest
from matplotlib import image as mpl_image

from brainuad.data.volume import Volume
from brainuad.report.montage import Overlay, choose_slices, finding_panels, montage

DEMO = Path(__file__).parents[2] / "src/brainuad/assets/demo"


@pytest.fixture
def case() -> dict[str, np.ndarray]:
    image, mask, lesion = (Volume.load(DEMO / f"patient19_{kind}.nii.gz").array for kind in ("t1", "mask", "seg"))
    return {"image": image / 255, "mask": mask > 0, "lesion": lesion > 0}


def test_slices_show_the_largest_lesion_area(case):
    slices = choose_slices(case["mask"], case["lesion"])
    area = case["lesion"].sum((0, 1))
    assert int(area.argmax()) in slices
    assert (area[slices] > 0).all()
    assert slices == sorted(set(slices))


def test_healthy_scans_show_slices_within_the_brain(case):
    slices = choose_slices(case["mask"], None)
    assert len(slices) == 4
    assert case["mask"][:, :, slices].any((0, 1)).all()


def test_the_picture_shows_the_map_on_a_fixed_scale(case):
    anomaly = case["lesion"] * 0.5

    def pixels(full_scale: float, first_colour: float = 0.01) -> np.ndarray:
        figure = montage(
            case["image"], case["image"], [Overlay("map", anomaly, first_colour, full_scale)],
            case["mask"], case["lesion"],
            title="<case & title>", scale_meaning="meaning",
        )  # fmt: skip
        return mpl_image.imread(io.BytesIO(figure.png()))[..., :3]

    def yellow(picture: np.ndarray) -> int:
        return int(((picture[..., 0] > 0.9) & (picture[..., 1] > 0.9) & (picture[..., 2] < 0.1)).sum())

    def coloured(picture: np.ndarray) -> int:
        return int((picture[..., 0] - picture[..., 2] > 0.15).sum())  # the scan shines through faint colours

    saturated, faint, none = pixels(0.5), pixels(10.0), pixels(10.0, first_colour=0.6)
    assert yellow(saturated) > yellow(faint) + 500  # the scale is given, not taken from the case
    assert coloured(saturated) == pytest.approx(coloured(faint), rel=0.1)
    assert coloured(none) < coloured(faint) - 500
    anomaly[np.nonzero(case["lesion"])[0].min() + 3 :] *= 0.2
    assert 0 < yellow(pixels(0.1)) < yellow(saturated)  # but ends at the map's highest where that is beyond


def test_slices_carry_sides_and_places(case):
    figure = montage(
        case["image"], None, [], case["mask"], None,
        title="t", scale_meaning="m", height=lambda z: f"z = {2 * z} mm",
    )  # fmt: skip
    first = next(axis for axis in figure.axes if axis.texts)
    texts = {text.get_text(): text.get_position()[0] for text in first.texts}
    assert texts["R"] < texts["L"]  # the patient's right is on the left
    assert f"z = {2 * choose_slices(case['mask'], None)[0]} mm" in texts


def test_the_colour_bar_begins_as_red_as_the_map_over_a_dark_scan(case):
    figure = montage(
        case["image"], None, [], case["mask"], None,
        title="t", scale_meaning="m",
    )  # fmt: skip
    figure.canvas.draw()
    bar = figure.axes[-1].get_window_extent()
    pixels = np.asarray(figure.canvas.buffer_rgba())[::-1] / 255
    red, green, blue, _ = pixels[round(bar.y0) + 4, round((bar.x0 + bar.x1) / 2)]
    assert red > 0.3
    assert max(green, blue) < 0.05


@pytest.mark.filterwarnings("error")
def test_letters_that_the_font_lacks_become_question_marks(case):
    figure = montage(
        case["image"], None, [], case["mask"], None,
        title="头部 é 🧠 $x$", scale_meaning="m",
    )  # fmt: skip
    figure.png()
    assert figure.get_suptitle() == "?? é ? $x$"


def test_every_finding_has_its_panel(case):
    labels = np.where(case["lesion"], 7, 0)
    z = int(case["lesion"].sum((0, 1)).argmax())
    overlay = Overlay("map", case["lesion"] * 0.5, 0.1, 0.5)
    figure = finding_panels(case["image"], overlay, labels, [(7, z, "z = 4 mm"), (8, 0, "z = 0 mm")])
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == ["finding 7 · z = 4 mm", "", "finding 8 · z = 0 mm", ""]
    first, beside, other, _ = figure.axes
    assert len(first.collections) == 1  # the outline
    assert not other.collections  # of one that is not in this slice
    assert beside.images[1].get_array().count() == case["lesion"][:, :, z].sum()
