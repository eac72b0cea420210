"""`python -m slimvit_jax tune`: method and token counts for a latency, from unlabelled images, without training."""

from __future__ import annotations

import argparse
import functools
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slimvit_jax.cli import arguments, common
from slimvit_jax.errors import SlimError
from slimvit_jax.reports import tables

if TYPE_CHECKING:
    import numpy as np


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.description = (
        "Measures what a layer costs on this machine, then searches the method and the number of patches "
        "that every layer leaves which meet the target and disagree least with the dense model on the images. Writes "
        "DIR/config.py, which train, evaluate, predict, export and serve take as --config, DIR/budget.json with "
        "everything that was seen, and DIR/front.png. A run with a method keeps it; else methods that need no training "
        "are tried."
    )
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--target-ms", type=float, metavar="MS", help="milliseconds that one batch may take")
    target.add_argument("--target-speedup", type=float, metavar="X", help="times as fast as the dense model")
    arguments.add_model(parser)
    parser.add_argument("--methods", metavar="NAME,...", help="methods to try, or all; default: the usual ones")
    parser.add_argument(
        "--images", metavar="DIR", help="images without labels, in any folders; else --data or the run's"
    )
    number = functools.partial(parser.add_argument, type=arguments.positive, metavar="N")
    number("--limit", default=256, help="images (default: %(default)s)")
    number("--search-images", default=64, help="of these, those that say most (default: %(default)s)")
    number("--evaluations", default=60, help="schedules per method (default: %(default)s)")
    parser.add_argument("--seed", type=arguments.natural, default=0, metavar="S", help="of the choice of images")
    parser.add_argument("--out", metavar="DIR", default="tuned", help="where the files go (default: %(default)s)")
    arguments.add_images(parser, batch_size=1)


def run(args: argparse.Namespace) -> int:
    """Searches, prints the table, writes the files."""
    if args.images and args.data:
        raise SlimError(f"--images {args.images} and --data {args.data}: give one of them")
    target = common.open_target(args)
    methods = args.methods if args.methods in (None, "all") else tuple(args.methods.split(","))

    from slimvit_jax.budget import tune
    from slimvit_jax.budget.given import check_target, families_of
    from slimvit_jax.files import write_json, write_text
    from slimvit_jax.inference.timing import describe_machine
    from slimvit_jax.reports.front import draw_front, front_table

    check_target(args.target_ms, args.target_speedup)
    families_of(target.model, methods or ())
    folder = common.writable_folder(args.out)
    images, labels, said = _images(args, target)
    began = time.perf_counter()
    say = lambda line: print(f"{time.perf_counter() - began:6.0f} s  {line}", file=sys.stderr, flush=True)
    budget = tune(
        target.model,
        target.load(),
        images,
        target_ms=args.target_ms,
        speedup=args.target_speedup,
        methods=methods or (),
        batch_size=args.batch_size,
        labels=labels,
        search_images=args.search_images,
        evaluations=args.evaluations,
        progress=say,
    )
    about = {"command": shlex.join(["slimvit", *sys.argv[1:]]), "model": target.title, "data": said}
    write_json(folder / "budget.json", {**about, "machine": describe_machine(), **budget.to_dict()})
    write_text(folder / "config.py", config_text(args, target, budget))
    draw_front(folder / "front.png", budget, f"{target.title}, {said}")
    tables.show(front_table(budget))
    tables.show(*(str(folder / name) for name in ("config.py", "budget.json", "front.png")))
    return 0


def _images(args: argparse.Namespace, target: common.Target) -> tuple[np.ndarray, np.ndarray | None, str]:
    """So many images, drawn by the seed, their labels where they are known, and what they are."""
    import numpy as np

    random = np.random.default_rng(args.seed)
    if args.images:
        from slimvit_jax.data.folder import SUFFIXES, class_files

        folder = Path(args.images)
        if not folder.is_dir():
            raise SlimError(f"--images {args.images}: there is no such folder")
        files = [str(folder / file) for file in class_files(folder, ".")]
        if not files:
            raise SlimError(f"--images {args.images}: no images in it; suffixes read: {' '.join(SUFFIXES)}")
        chosen = [files[i] for i in sorted(random.permutation(len(files))[: args.limit])]
        pixels = common.read_images(chosen, target.preprocess)
        return target.preprocess.normalise(pixels), None, f"{len(chosen)} images of a folder"
    if not args.data and target.run is None:
        raise SlimError("no images to agree on: give --images DIR, or --data NAME")
    from slimvit_jax.data import pixels_of

    source = common.open_source(args, target)
    records = [source[int(i)] for i in sorted(random.permutation(len(source))[: args.limit])]
    pixels = pixels_of(records, target.preprocess)
    labels = np.asarray([record["label"] for record in records]) if target.model.num_classes else None
    return target.preprocess.normalise(pixels), labels, f"{len(records)} images of {source.name} {source.split}"


def config_text(args: argparse.Namespace, target: common.Target, budget: Any) -> str:
    """The text of a config with the model, the method found and a stage that trains it further."""
    options, method = dict(budget.options), budget.options["method"]
    del options["method"]
    if target.run is not None:
        fitting: dict[str, Any] = {}
        name, model = target.run.config.model.name, target.run.config.model.options.to_dict()
        weights, data = str(target.run.weights(args.stage)), target.run.config.data.name
    else:
        given, fitting = target.asked
        name, weights, data = target.title, args.weights, args.data or "folder"
        model = {key: getattr(target.model, key) for key in given if key in target.model.options()}
    shown = shlex.quote(str(weights)).encode("unicode_escape").decode().replace('"', '\\"')  # in a docstring
    lines = "".join(f"        {key!r}: {value!r},\n" for key, value in options.items())
    return f'''"""{name} with {method}, {budget.ms:.2f} ms a batch of {budget.batch_size} where it was tuned.

    slimvit evaluate --config=FILE --weights={shown} ...          predict, export and serve likewise
    slimvit train --config=FILE --workdir=DIR --config.data.data_dir=IMAGES

Found by slimvit tune: {budget.dense_ms / budget.ms:.2f} x as fast as the dense model, {budget.measure} \\
{budget.found.disagreement:.4g} from it on {budget.images} images.
"""

from slimvit_jax.training.config import add_stage, default_config


def get_config():
    config = default_config()
    config.name = "tuned"
    config.model.name = {name!r}
    config.model.options = {model!r}
    config.method.name = {method!r}
    config.method.options = {{
{lines}    }}
    config.init.path = {weights!r}
    config.init.options = {fitting!r}
    config.data.name = {data!r}
    config.augment.update(kind="crop", crop_scale=(0.35, 1.0), hflip=0.5)
    add_stage(config, "finetune", epochs=2.0, lr={{"backbone": 2e-5}}, warmup_epochs=0.1)
    return config
'''
