"""``brainuad demo``."""

from __future__ import annotations

import json
from pathlib import Path

from brainuad.cli import options
from brainuad.cli.app import app
from brainuad.console import progress


@app.command(short_help="Score the scans that come with brainuad.")
def demo(output: options.Output = Path("demo"), device: options.Device = "auto", as_json: options.Json = False) -> None:
    """Score the scans that come with brainuad: a table, pictures, and a page of the scans with real lesions."""
    import pandas as pd

    from brainuad.experiment.demo import run_demo

    with progress("Demo", None) as advance:
        made = run_demo(output, device=device, report=lambda step, total: advance(total=total, what=step.capitalize()))
    if as_json:
        tables = {"scores": made.table, "groups": made.groups}
        found = {name: json.loads(table.reset_index().to_json(orient="records")) for name, table in tables.items()}
        pictures = [str(path) for path in made.pictures]
        files = {"results": str(made.results), "pictures": pictures, "page": str(made.page)}
        print(json.dumps(found | files, indent=2))
        return
    print(made.groups.to_string(float_format="{:.4f}".format, na_rep="-"), end="\n\n")
    short = {"average precision": "AP", "best dice": "Dice"}
    groups = [name.rsplit(": ", 1) for name in made.table]
    names = pd.MultiIndex.from_tuples([(group, short[measure]) for group, measure in groups])
    shown = made.table.set_axis(names, axis=1).rename_axis(None)
    print(shown.to_string(float_format="{:.3f}".format))
    print("AP: average precision. Dice: at each scan's best threshold.", end="\n\n")
    print(f"Table: {made.results}")
    print(f"Pictures: {made.pictures[0]}; every other scan has its own beside it.")
    print(f"Open {made.page}: the real tumours and multiple sclerosis, as `brainuad score` shows them.")
