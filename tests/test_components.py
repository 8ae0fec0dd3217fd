"""Connected regions, and what of them stands out."""

import numpy as np
from scipy import ndimage

from brainuad.components import outlined


def blurred(*peaks: tuple[tuple[int, int, int], float], shape: tuple[int, int, int] = (40, 30, 20)) -> np.ndarray:
    map = np.zeros(shape)
    for place, height in peaks:
        one = np.zeros(shape)
        one[place] = 1
        one = ndimage.gaussian_filter(one, 3)
        map += height * one / one.max()
    return map


def test_a_halo_is_left_out_whatever_the_scale_of_the_map() -> None:
    map = blurred(((10, 15, 10), 9.0))
    labels, count = outlined(map, 1.0)
    assert count == 1
    np.testing.assert_array_equal(labels > 0, map > 5)
    np.testing.assert_array_equal(outlined(5 * map + 7, 12.0)[0], labels)


def test_two_peaks_in_one_halo_are_two_regions() -> None:
    map = blurred(((10, 15, 10), 10.0), ((24, 15, 10), 8.0))
    assert ndimage.label(map > 0.5)[1] == 1
    labels, count = outlined(map, 0.5)
    assert count == 2
    assert labels[10, 15, 10] != labels[24, 15, 10] > 0


def test_regions_apart_are_cut_by_their_own_peaks() -> None:
    map = blurred(((5, 15, 10), 9.0), ((34, 15, 10), 2.0))
    labels, count = outlined(map, 1.0)
    assert count == 2
    np.testing.assert_array_equal(labels[:20] > 0, map[:20] > 5)
    np.testing.assert_array_equal(labels[20:] > 0, map[20:] > 1.5)


def test_nothing_above_the_threshold() -> None:
    labels, count = outlined(np.zeros((5, 6, 7)), 0.0)
    assert count == 0
    assert not labels.any()
