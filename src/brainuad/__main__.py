"""``python -m brainuad`` is the program ``brainuad``."""

from brainuad.cli import main

if __name__ == "__main__":
    main()
