"""`python -m slimvit_jax visualize`: weight curves, lives and what is kept, as picture files."""

from __future__ import annotations

import argparse
from typing import Any

from slimvit_jax.cli import common
from slimvit_jax.errors import SlimError, unknown


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Adds the `visualize` command."""
    parser = subparsers.add_parser(
        "visualize",
        help="draw weight curves, lives and what is kept",
        description="Draws lives.EXT (images, lives of their patches, what is kept after each drop) and, for life "
        "regression, weights.EXT (the weight curves, and the mean weight of these patches layer by layer).",
    )
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="image files; none: the first ones of the data")
    common.add_model_arguments(parser)
    common.add_image_arguments(parser)
    parser.add_argument("--count", type=common.positive, default=4, metavar="N", help="images to take from the data")
    parser.add_argument("--classes", metavar="FILE", help="names of the classes, one a line")
    parser.add_argument("--out", metavar="DIR", default="figures", help="where the pictures go (default: %(default)s)")
    parser.add_argument("--format", default="png", metavar="EXT", help="png, svg, pdf, ... (default: %(default)s)")
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Writes the pictures and prints their paths."""
    import numpy as np

    from slimvit_jax.analysis import pictures
    from slimvit_jax.analysis.evaluate import Inference
    from slimvit_jax.analysis.visualize import DRAWN_FORMATS
    from slimvit_jax.data import samples

    if args.format not in DRAWN_FORMATS:
        raise unknown("picture format", args.format, DRAWN_FORMATS)
    target = common.open_target(args)
    model, prepare = target.model, target.preprocess
    life = model.slim.method == "life_regression"
    if not life and model.slim.plan == type(model.slim.plan).full(model.geometry.num_patches, model.geometry.depth):
        raise SlimError(f"method {model.slim.method!r} drops nothing, so there is nothing to draw; give --method NAME")
    names = common.class_names(args, target)
    if args.images:
        if args.data:
            raise SlimError("give image files or --data, not both")
        pixels, titles = common.read_images(args.images, prepare), list(args.images)
    else:
        source = common.open_source(args, target)
        names = names or source.class_names
        records = samples(source, args.count)
        pixels = np.stack([prepare.pixels(record["image"], record["name"]) for record in records])
        titles = [names[record["label"]] for record in records]
    variables = target.load()
    folder = common.writable_folder(args.out)
    outputs = Inference(model, variables)(prepare.normalise(pixels))
    if model.num_classes:
        guesses = np.asarray(outputs.logits).argmax(1)
        titles = [f"{title} → {names[c] if names else c}" for title, c in zip(titles, guesses, strict=True)]
    written = []
    if outputs.kept or outputs.scores is not None:
        written.append(pictures.picture_lives(folder / f"lives.{args.format}", model, outputs, pixels, titles))
    if life:
        path = folder / f"weights.{args.format}"
        written.append(pictures.picture_weights(path, model, np.asarray(outputs.scores)))
    if not written:
        raise SlimError(f"method {model.slim.method!r} merges patches and has no scores to draw")
    for path in written:
        print(path)
    return 0
