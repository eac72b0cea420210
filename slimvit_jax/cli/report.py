"""`python -m slimvit_jax report --workdir RUN`: the report of a training run, measured and drawn anew."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.description = (
        "Measures accuracy and speed of a run at every keep rate and writes report.md, report.json and "
        "figures/ into its folder, as training does at its end."
    )
    parser.add_argument("--workdir", required=True, metavar="RUN", help="a training run, done wholly or in part")
    parser.add_argument("--data-dir", metavar="DIR", help="where the run's images are now, if not where they were")


def run(args: argparse.Namespace) -> int:
    """Writes the files and prints one table."""
    from slimvit_jax import open_run
    from slimvit_jax.reports.report import write_report

    found = open_run(args.workdir)
    if args.data_dir is not None:
        found.config.data.data_dir = args.data_dir
    write_report(found.path, found.config, found.result())
    return 0
