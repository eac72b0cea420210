"""`python -m slimvit_jax visualize`: weight curves, lives and what is kept, as picture files."""

from __future__ import annotations

import argparse
from pathlib import Path

from slimvit_jax.cli import arguments, common
from slimvit_jax.errors import SlimError, unknown


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.description = (
        "Draws lives.EXT (images, lives of their patches or other scores, what is kept after each drop); "
        "for life regression, weights.EXT (the weight curves, and the mean weight of these patches layer by layer); "
        "for methods that merge, groups.EXT (which patches became one token)."
    )
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="image files; none: the first ones of the data")
    arguments.add_model(parser)
    arguments.add_images(parser)
    parser.add_argument("--count", type=arguments.positive, default=4, metavar="N", help="images to take from the data")
    parser.add_argument("--classes", metavar="FILE", help="names of the classes, one a line")
    parser.add_argument("--out", metavar="DIR", default="figures", help="where the pictures go (default: %(default)s)")
    parser.add_argument("--format", default="png", metavar="EXT", help="png, svg, pdf, ... (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Writes the pictures and prints their paths."""
    import numpy as np

    from slimvit_jax.data import pixels_of, samples
    from slimvit_jax.inference.evaluate import Inference
    from slimvit_jax.reports import pictures, tables
    from slimvit_jax.reports.style import DRAWN_FORMATS

    if args.format not in DRAWN_FORMATS:
        raise unknown("picture format", args.format, DRAWN_FORMATS)
    target = common.open_target(args)
    model, prepare = target.model, target.preprocess
    life = model.slim.predicts_lives
    if not life and model.slim.plan == model.geometry.dense_plan:
        raise SlimError(f"method {model.slim.method!r} drops nothing, so there is nothing to draw; give --method NAME")
    names = common.class_names(args, target)
    if args.images:
        if args.data:
            raise SlimError("give image files or --data, not both")
        pixels, titles = common.read_images(args.images, prepare), list(args.images)
        shown = common.read_images(args.images, prepare.for_display())
    else:
        source = common.open_source(args, target)
        names = names or source.class_names
        records = samples(source, args.count)
        pixels, shown = (pixels_of(records, each) for each in (prepare, prepare.for_display()))
        titles = [names[record["label"]] for record in records]
    variables = target.load()
    folder = common.writable_folder(args.out)
    place = lambda kind: common.not_over(folder / f"{kind}.{args.format}", args.images)
    images = prepare.normalise(pixels)
    outputs = Inference(model, variables)(images)
    if model.num_classes:
        guesses = np.asarray(outputs.logits).argmax(1)
        titles = [f"{title} → {names[c] if names else c}" for title, c in zip(titles, guesses, strict=True)]
    written: list[Path | None] = []
    if outputs.kept or outputs.scores is not None:
        written.append(pictures.picture_lives(place("lives"), model, outputs, shown, titles))
    if life:
        written.append(pictures.picture_weights(place("weights"), model, np.asarray(outputs.scores)))
    if model.slim.merges:
        written.append(pictures.picture_groups(place("groups"), model, variables, images, shown, titles))
    if not any(written):
        raise SlimError(f"method {model.slim.method!r} tells nothing that can be drawn")
    for path in filter(None, written):
        tables.show(str(path))
    return 0
