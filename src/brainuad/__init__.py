"""Where is this brain unlike a healthy one? Unsupervised anomaly detection in brain MRI.

>>> import brainuad
>>> result = brainuad.score("scan.nii.gz", "lite-t1", brain_mask="mask.nii.gz")  # doctest: +SKIP

Names are imported when first used, so importing the package is fast.
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
