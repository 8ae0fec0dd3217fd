"""Tell lesion outlines from brain masks and scans."""

from __future__ import annotations

from brainuad.data.volume import Volume

_LARGEST = 600.0  # mL: about half a brain


def truth_fault(lesion: Volume) -> str:
    """Return why a volume cannot be the outline of lesions, "" if it can: a brain mask or a scan is none."""
    ml = float(lesion.inside.sum() * lesion.voxel_ml)
    fault = f"marks {ml:.0f} mL, most of a brain: no lesion mask, but a brain mask or a scan"
    return "" if ml < _LARGEST else fault
