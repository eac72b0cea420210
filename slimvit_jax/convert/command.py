"""`python -m slimvit_jax convert SRC DST --model NAME`: a weights file of one kind to another, checked on the way."""

from __future__ import annotations

import argparse
import ast
import os
from typing import Any

from slimvit_jax.errors import SlimError


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Adds the `convert` command to the program's subparsers; `main` runs it (also set as the default `run`)."""
    parser = subparsers.add_parser(
        "convert",
        help="convert a weights file to another kind",
        description="Reads weights, checks every name and shape against the model, writes them as another kind.",
    )
    kinds = ".safetensors, .npz, .pth, .bin, *.index.json, a folder of transformers, an Orbax directory"
    parser.add_argument("source", metavar="SRC", help=f"{kinds}, or hf-hub:OWNER/NAME")
    parser.add_argument("target", metavar="DST", help="the kind by suffix; without a suffix an Orbax directory")
    parser.add_argument("--model", required=True, metavar="NAME", help="model or family (see the command `models`)")
    parser.add_argument("--method", metavar="NAME", help="slimming method, for weights that hold its parameters")
    parser.add_argument(
        "--set",
        dest="options",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an option of the model or method, such as img_size=384 or num_classes=10; may be repeated",
    )
    parser.add_argument(
        "--init-missing",
        action="append",
        default=[],
        metavar="PREFIX",
        help="initialise what is missing under this name (life_predictor) or has another size (head); may be repeated",
    )
    parser.add_argument(
        "--ignore", action="append", default=[], metavar="PREFIX", help="leave out what the model has no place for"
    )
    parser.add_argument(
        "--resample-pos-embed", action="store_true", help="resample a position embedding of another (square) grid"
    )
    parser.add_argument(
        "--no-antialias",
        dest="antialias",
        action="store_false",
        help="resample as transformers does, for weights that were trained or tuned there",
    )
    parser.add_argument(
        "--checkpoint-key",
        metavar="KEY",
        help="the entry of a checkpoint with several sets of weights (default: the average, such as model_ema)",
    )
    parser.add_argument(
        "--inference", action="store_true", help="leave out what only training reads (SiT's recovery, auxiliary heads)"
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace DST, if it is a weights file, or a directory that this command wrote",
    )
    parser.set_defaults(run=main)
    return parser


def parse_options(items: list[str]) -> dict[str, Any]:
    """["img_size=384", "class_token=False"] as keywords; values are Python literals, anything else is a string."""
    options: dict[str, Any] = {}
    for item in items:
        key, equals, text = item.partition("=")
        if not equals or not key.isidentifier():
            raise SlimError(f"option {item!r}: expected KEY=VALUE")
        try:
            options[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            options[key] = text
    return options


def main(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit status. Bad input is a SlimError, raised before anything is written."""
    from slimvit_jax.build import create_model
    from slimvit_jax.convert.io import load, save, writable

    target = writable(args.target, overwrite=True)
    if os.path.lexists(target) and not args.overwrite:
        raise SlimError(f"{target}: exists; --overwrite replaces it")
    model = create_model(args.model, method=args.method, **parse_options(args.options))
    variables = load(
        model,
        args.source,
        init_missing=args.init_missing,
        ignore=args.ignore,
        resample_pos_embed=args.resample_pos_embed,
        antialias=args.antialias,
        checkpoint_key=args.checkpoint_key,
        inference=args.inference,
    )
    save(model, variables, target, inference=args.inference, overwrite=args.overwrite)
    import jax

    count = sum(leaf.size for leaf in jax.tree.leaves(variables))
    print(f"{args.source} -> {target}: {args.model}, {count:,} numbers")
    return 0
