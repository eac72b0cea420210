"""`python -m slimvit_jax config NAME`: every field of a configuration, as training would see it."""

from __future__ import annotations

import argparse
import json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.description = "Checks a configuration and prints every field as --config.FIELD=VALUE would set it."
    parser.add_argument("file", metavar="NAME", help="of configs/NAME.py, or a Python file with get_config()")
    parser.add_argument("overrides", nargs="*", metavar="FIELD=VALUE", help="changes, such as data.batch_size=32")
    parser.add_argument("--json", action="store_true", help="print JSON instead of lines")


def run(args: argparse.Namespace) -> int:
    """Prints the fields."""
    from slimvit_jax.training.config import flatten
    from slimvit_jax.training.loading import load_config, parse_overrides

    overrides = parse_overrides([f"--config.{item}" for item in args.overrides])
    config = load_config(args.file, overrides)
    if args.json:
        print(json.dumps(config.to_dict(), indent=2))
        return 0
    for field, value in flatten(config).items():
        print(f"{field}={value!r}")
    return 0
