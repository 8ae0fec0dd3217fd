"""Delineated regions of a map, by scikit-image."""

import numpy as np
from skimage.measure import label, regionprops


def delineated(map: np.ndarray, threshold: float) -> list:
    """Return the regions of what is nearer to the peak of each region than to the threshold."""
    kept = np.zeros(map.shape, bool)
    for region in regionprops(label(map > threshold, connectivity=3), intensity_image=map):
        place = tuple(region.coords.T)
        kept[place] = map[place] > threshold + 0.5 * (float(region.intensity_max) - threshold)
    return regionprops(label(kept, connectivity=3), intensity_image=map)
