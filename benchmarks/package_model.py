"""Turn a trained model into one to ship: 8-bit weights, settings of use, notes. Calibrate it afterwards.

    python benchmarks/package_model.py RUN/model -o MODEL --noise-ensemble --note training_data="109 of IXI"
    brainuad calibrate MODEL RAW_VALIDATION_SCANS...

Then `config.yaml`, `model.safetensors`, `calibration.json` and `health.safetensors` of MODEL go to
`src/brainuad/assets/models/NAME`.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path

from brainuad.detector import Detector
from brainuad.models.paired import PairedModel, PairedSettings


def paired(detector: Detector, second: Detector) -> Detector:
    """Return a diffusion model and a denoising autoencoder as one model."""
    settings = {**asdict(second.model_config), **asdict(detector.model_config), "name": "ddpm_dae"}
    config = PairedSettings(**settings)
    model = PairedModel(config)
    weights = detector.model.state_dict()
    model.load_state_dict(
        {**weights, **{f"denoiser.{name}": value for name, value in second.model.state_dict().items()}}
    )
    return replace(detector, model=model.eval(), model_config=config)


def main() -> None:
    """Package a model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--second", type=Path, help="a trained denoising autoencoder, to put beside a diffusion model")
    parser.add_argument("--noise-ensemble", action="store_true", help="reconstruct at several noise levels")
    parser.add_argument("--step-ensemble", help="these noise levels, such as 600,700,800; implies --noise-ensemble")
    parser.add_argument("--note", action="append", default=[], help="KEY=VALUE for the model's provenance")
    arguments = parser.parse_args()
    detector = Detector.load(arguments.model)
    if arguments.noise_ensemble:
        detector = detector.with_settings(noise_ensemble=True)
    if arguments.step_ensemble:
        levels = tuple(map(int, arguments.step_ensemble.split(",")))
        detector = detector.with_settings(noise_ensemble=True, step_ensemble=levels)
    if arguments.second:
        detector = paired(detector, Detector.load(arguments.second))
    detector.provenance |= dict(note.split("=", 1) for note in arguments.note)
    detector.calibration = detector.health = None  # those of other weights
    detector.save(arguments.output, bits=8)


if __name__ == "__main__":
    main()
