"""Run the program ``brainuad`` by ``python -m brainuad``."""

from brainuad.cli import main

if __name__ == "__main__":
    main()
