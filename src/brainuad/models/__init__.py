"""Models of healthy brains: the network, its diffusion process, the noise it removes. Tensors in and out."""

from brainuad.models.atlas import AtlasModel
from brainuad.models.autoencoder import Autoencoder, VariationalAutoencoder
from brainuad.models.conditioned import ConditionedDiffusionModel
from brainuad.models.denoising import DenoisingAutoencoder
from brainuad.models.diffusion import DiffusionModel
from brainuad.models.noise import gaussian_noise, opensimplex_permutation, simplex_fields, simplex_noise
from brainuad.models.paired import PairedModel
from brainuad.models.patched import PatchedDiffusionModel
from brainuad.models.release import load_reference_state_dict
from brainuad.models.restoration import RestorationModel
from brainuad.models.spark import SparkModel
from brainuad.models.unet import build_unet

__all__ = [
    "AtlasModel",
    "Autoencoder",
    "ConditionedDiffusionModel",
    "DenoisingAutoencoder",
    "DiffusionModel",
    "PairedModel",
    "PatchedDiffusionModel",
    "RestorationModel",
    "SparkModel",
    "VariationalAutoencoder",
    "build_unet",
    "gaussian_noise",
    "load_reference_state_dict",
    "opensimplex_permutation",
    "simplex_fields",
    "simplex_noise",
]
