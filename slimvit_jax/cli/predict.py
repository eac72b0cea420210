"""`python -m slimvit_jax predict IMAGE...`: the classes of image files, and a picture of the lives of their patches."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from slimvit_jax.cli import arguments, common
from slimvit_jax.reports import tables
from slimvit_jax.text import printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.description = (
        "Prints the most probable classes of image files; with --out, draws what the model keeps of them. "
        "A model without a classifier (num_classes=0) writes its features to --out."
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files")
    arguments.add_model(parser)
    arguments.add_preprocess(parser)
    parser.add_argument("--top", type=arguments.positive, default=5, metavar="K", help="classes to print per image")
    parser.add_argument("--classes", metavar="FILE", help="names of the classes, one a line")
    parser.add_argument(
        "--out", metavar="DIR", default="predictions", help="where the pictures go (default: %(default)s)"
    )
    parser.add_argument("--no-pictures", action="store_true", help="write no pictures")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(args: argparse.Namespace) -> int:
    """Prints one row per image and class, and writes one picture per image if the method drops patches."""
    target = common.open_target(args)
    model = target.model
    pixels = common.read_images(args.images, target.preprocess)
    if not model.num_classes:
        return _write_features(args, target, pixels)
    names = common.class_names(args, target)
    variables = target.load()
    folder = None if args.no_pictures else common.writable_folder(args.out)
    pictures = (
        [] if folder is None else [common.not_over(folder / f"{n}.png", args.images) for n in _names(args.images)]
    )

    from slimvit_jax.inference.evaluate import Inference, best_classes
    from slimvit_jax.reports.pictures import picture_lives

    inference = Inference(model, variables)
    rows = []
    for place, file in enumerate(args.images):
        # one by one, so that any number of files needs one compilation and the memory of one image
        outputs = inference(target.preprocess.normalise(pixels[place : place + 1]))
        top = best_classes(outputs.logits[0], args.top, names)
        row: dict[str, Any] = {"image": file, "top": top, "picture": None}
        if folder is not None and outputs.kept:
            caption = f"{Path(file).name}: {top[0]['name']}, {100 * top[0]['probability']:.0f} %"
            shown = target.preprocess.for_display().pixels(file)
            picture_lives(pictures[place], model, outputs, [shown], [caption])
            row["picture"] = str(pictures[place])
        rows.append(row)
    if args.json:
        print(json.dumps(rows, indent=2))
        return 0
    table = tables.table("image", "class", "probability", "picture")
    for row in rows:
        for place, guess in enumerate(row["top"]):
            first = place == 0
            table.add_row(
                row["image"] if first else "",
                guess["name"],
                f"{100 * guess['probability']:.1f} %",
                row["picture"] or "" if first else "",
            )
    tables.show(table)
    if folder is not None and not any(row["picture"] for row in rows):
        print(f"no pictures: {model.slim.method} drops no patches at these settings")
    return 0


def _write_features(args: argparse.Namespace, target: common.Target, pixels: Any) -> int:
    """Of a model without a classifier: features.npz with "images" (N,) paths and "features" (N, D) float32."""
    variables = target.load()
    path = common.not_over(common.writable_folder(args.out) / "features.npz", args.images)

    import numpy as np

    from slimvit_jax.files import atomic_path
    from slimvit_jax.inference.evaluate import Inference

    inference, prepare = Inference(target.model, variables), target.preprocess
    found = [np.asarray(inference(prepare.normalise(one[None])).logits)[0] for one in pixels]
    names = np.array([printable(file) for file in args.images])
    with atomic_path(path) as temporary:
        np.savez(temporary, images=names, features=np.stack(found))
    if args.json:
        print(json.dumps([{"image": file, "features": str(path)} for file in args.images], indent=2))
    else:
        tables.show(f"{path}: {len(found)} x {len(found[0])} features; {target.title} has no classifier")
    return 0


def _names(files: list[str]) -> list[str]:
    """One distinct file stem for each image; files of the same name in other folders get a number."""
    names: list[str] = []
    for file in files:
        stem, number = Path(file).stem, 1
        while (name := stem if number == 1 else f"{stem}_{number}") in names:
            number += 1
        names.append(name)
    return names
