#!/usr/bin/env python3
"""The command line of a BIDS App (Gorgolewski et al. 2017) on top of ``brainuad score``."""

from __future__ import annotations

import argparse
import os
import sys


def command(arguments: list[str]) -> list[str]:
    """Return the brainuad command for the arguments of a BIDS App; wrong usage exits with 2."""
    parser = argparse.ArgumentParser(
        prog="brainuad",
        allow_abbrev=False,
        description="Map anomalies in the scans of a BIDS data set, each in its own space. Research use only; "
        "not for diagnosis.",
        epilog="Any other option is passed on to `brainuad score`: --model, --fpr, --seed, --dry-run, ...",
    )
    parser.add_argument("bids_dir", help="the data set")
    parser.add_argument("output_dir", help="a BIDS derivative is written there")
    parser.add_argument(
        "analysis_level",
        choices=("participant", "group"),
        help="participant: score the scans; group: build the report anew from what is in OUTPUT_DIR",
    )
    for name, what in (("participant", "subjects"), ("session", "sessions")):
        parser.add_argument(
            f"--{name}-label", f"--{name}_label", nargs="+", default=[], metavar="LABEL",
            help=f"only these {what}",
        )  # fmt: skip
    parser.add_argument("--n-cpus", "--n_cpus", type=int, default=1, metavar="N", help="scans at a time")
    parser.add_argument(
        "--skip-bids-validator", "--skip_bids_validator", action="store_true",
        help="accepted and without effect: the data set is not validated",
    )  # fmt: skip
    known, others = parser.parse_known_args(arguments)
    if known.analysis_level == "group":
        if others:
            parser.error(f"unrecognized arguments for the group level: {' '.join(others)}")
        return ["brainuad", "report", known.output_dir]
    labels = [("--participant-label", label) for label in known.participant_label]
    labels += [("--session", label) for label in known.session_label]
    chosen = [part for pair in labels for part in pair]
    scoring = ["brainuad", "score", known.bids_dir, "-o", known.output_dir, "--jobs", str(known.n_cpus)]
    return [*scoring, *chosen, *others]


def main() -> None:
    """Become the brainuad command."""
    arguments = sys.argv[1:]
    line = ["brainuad", "--version"] if arguments in (["-v"], ["--version"]) else command(arguments)
    os.execvp(line[0], line)


if __name__ == "__main__":
    main()
