"""`python -m slimvit_jax models`: what there is to build."""

from __future__ import annotations

import argparse
import fnmatch
import json
from typing import Any

from slimvit_jax.cli import arguments, common
from slimvit_jax.errors import SlimError, unknown


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.description = "Lists the named models, dense or with a method: parameters, multiply-adds, preprocessing."
    parser.add_argument("pattern", nargs="?", default="", help="only names that contain this, or match it: 'deit*'")
    arguments.add_method(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(args: argparse.Namespace) -> int:
    """Prints the table, or JSON."""
    from slimvit_jax import list_methods, list_models
    from slimvit_jax.models import NAMED
    from slimvit_jax.reports import tables

    wild = any(character in args.pattern for character in "*?[")
    names = [n for n in sorted(NAMED) if (fnmatch.fnmatchcase(n, args.pattern) if wild else args.pattern in n)]
    if not names:
        raise unknown("model", args.pattern, NAMED)
    rows, refused = [], None
    for name in names:
        try:
            rows.append(_facts(name, args))
        except SlimError as error:  # the method does not go with this backbone
            refused = error
    if refused is not None and not rows:
        raise refused
    if args.json:
        print(json.dumps(rows, indent=2))
        return 0
    columns = ("input", "parameters", "training only", "multiply-adds", "mean", "std", "crop", "resize")
    table = tables.table("model", *columns)
    for row in rows:
        table.add_row(
            row["model"],
            "x".join(map(str, row["input_size"])),
            f"{row['parameters'] / 1e6:.2f} M",
            f"{row['training_parameters'] / 1e6:.2f} M" if row["training_parameters"] else "",
            f"{row['flops'] / 1e9:.2f} G",
            " ".join(f"{v:.3f}" for v in row["mean"]),
            " ".join(f"{v:.3f}" for v in row["std"]),
            f"{row['crop_pct']:g}",
            row["interpolation"],
        )
    tables.show(table)
    print("training only: further parameters that inference never reads (SiT's recovery modules, Evo-ViT's class head)")
    families = [name for name in list_models() if name not in NAMED]
    print(f"families for any size: {', '.join(families)}\nmethods: {', '.join(list_methods())}")
    return 0


def _facts(name: str, args: argparse.Namespace) -> dict[str, Any]:
    from slimvit_jax import create_model, flops, transform_for
    from slimvit_jax.inference.evaluate import count_parameters

    model = create_model(name, **common.method_options(args))
    preprocess = transform_for(model)
    return {
        "model": name,
        "method": model.slim.method,
        "input_size": list(model.img_size),
        "parameters": count_parameters(model),
        "training_parameters": count_parameters(model, training=True),
        "flops": flops(model).total,
        "token_counts": list(model.slim.plan.token_counts),
        "mean": list(preprocess.mean),
        "std": list(preprocess.std),
        "crop_pct": preprocess.crop_pct,
        "interpolation": preprocess.interpolation,
    }
