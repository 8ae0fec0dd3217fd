"""What `brainuad.study` gives, under the name that it had before."""

from brainuad.study import *  # noqa: F403
