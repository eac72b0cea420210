"""`python -m slimvit_jax convert SRC DST --model NAME`: a weights file of one kind to another, checked on the way."""

from __future__ import annotations

import argparse
import os

from slimvit_jax.cli import arguments, common
from slimvit_jax.errors import SlimError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.description = "Reads weights, checks every name and shape against the model, writes them as another kind."
    parser.add_argument("source", metavar="SRC", help=arguments.KINDS)
    parser.add_argument("target", metavar="DST", help="the kind by suffix; without a suffix an Orbax directory")
    parser.add_argument("--model", required=True, metavar="NAME", help="model or family (see the command `models`)")
    arguments.add_method(parser)
    arguments.add_weights(parser)
    parser.add_argument(
        "--inference", action="store_true", help="leave out what only training reads (SiT's recovery, auxiliary heads)"
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace DST, if it is a weights file, or a directory that this command wrote",
    )


def run(args: argparse.Namespace) -> int:
    """Writes the file; bad input is a SlimError, raised before anything is written."""
    from slimvit_jax.build import create_model
    from slimvit_jax.convert.io import load, save, writable
    from slimvit_jax.models import check_weights_of

    target = writable(args.target, overwrite=True)
    if os.path.lexists(target) and not args.overwrite:
        raise SlimError(f"{target}: exists; --overwrite replaces it")
    check_weights_of(args.model, args.source, "SRC")
    model = create_model(args.model, **common.method_options(args))
    options = common.weights_options(args)
    variables = load(model, args.source, **options)
    save(model, variables, target, inference=args.inference, overwrite=args.overwrite)
    import jax

    count = sum(leaf.size for leaf in jax.tree.leaves(variables))
    print(f"{args.source} -> {target}: {args.model}, {count:,} numbers")
    return 0
