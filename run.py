"""The command of the paper: ``python run.py experiment=DDPM/DDPM datamodule.cfg.mode=t2``."""

import sys
from pathlib import Path

from brainuad.experiment.run import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], env_file=Path(__file__).with_name("pc_environment.env")))
