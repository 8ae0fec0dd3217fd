"""``brainuad scores``."""

from __future__ import annotations

from brainuad.cli import options
from brainuad.cli.app import app
from brainuad.console import print_rows


@app.command(short_help="List the anomaly scores.")
def scores(as_json: options.Json = False) -> None:
    """List the anomaly scores and what each is for.

    NAME_z is relative to health. second_NAME is of the second reconstruction, of models that make two.
    """
    from brainuad.scoring.names import INTENSITY_ATLAS, base_of, describe, score_names

    plain = [name for name in score_names() if name == INTENSITY_ATLAS or base_of(name) is None]
    print_rows([{"score": name, "for": describe(name)} for name in plain], as_json)
