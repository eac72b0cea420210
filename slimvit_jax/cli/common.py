"""What the commands share: which model, which weights, which images, and which options fit them together."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slimvit_jax.errors import SlimError
from slimvit_jax.files import read_text
from slimvit_jax.options import Text

if TYPE_CHECKING:
    import numpy as np

    from slimvit_jax.data import Source
    from slimvit_jax.images import Preprocess
    from slimvit_jax.runs import TrainingRun


def rate_list(text: str) -> tuple[float, ...]:
    """Comma-separated keep rates, each in (0, 1]."""
    from slimvit_jax.plan import check_keep_rate

    return check_keep_rate(Text(text))


def parse_options(items: list[str]) -> dict[str, Any]:
    """["img_size=384", "qk_norm=false"] as keywords; each word is read as what its option takes (`options.Text`)."""
    options: dict[str, Any] = {}
    for item in items:
        key, equals, text = item.partition("=")
        if not equals or not key.isidentifier():
            raise SlimError(f"option {item!r}: expected KEY=VALUE")
        if key in ("name", "method"):
            raise SlimError(f"--set {item}: give --{'model' if key == 'name' else key} {text}")
        options[key] = Text(text)
    return options


def method_options(args: argparse.Namespace) -> dict[str, Any]:
    """Keywords for create_model from --method, --keep-rate and --set; --method none is the dense model."""
    from slimvit_jax import Slimming, list_methods
    from slimvit_jax.runs import DENSE

    options = parse_options(args.options)
    if args.keep_rate is not None:
        elsewhere = getattr(args, "workdir", None) or getattr(args, "config", None)
        if args.method in DENSE or (args.method is None and not elsewhere):
            raise SlimError(f"--keep-rate {args.keep_rate} needs --method NAME; choices: {', '.join(list_methods())}")
        rates = rate_list(args.keep_rate)
        options["keep_rate"] = rates if len(rates) > 1 else rates[0]
    if args.method is not None:
        options["method"] = Slimming() if args.method in DENSE else args.method
    return options


def weights_options(args: argparse.Namespace) -> dict[str, Any]:
    """Keywords for `slim.load`: the arguments of `arguments.add_weights` that were given."""
    from slimvit_jax.convert import split_load_options

    given, _ = split_load_options(vars(args))
    return {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}


def asked(args: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """Keywords for create_model and for `slim.load`: those of --config, and on top of them what the words say.

    Of a config count the method, unless --method names another one, and without --workdir the model, its "name" among
    the keywords, and how its weights are loaded. But what is to be initialised at random is not the config's to say: it
    is meant for training.
    """
    options: dict[str, Any] = {}
    load: dict[str, Any] = {}
    if getattr(args, "config", None):
        from slimvit_jax.training import load_config
        from slimvit_jax.training.build import at_keep_rate

        config = load_config(args.config)
        if not args.workdir:
            options = {"name": config.model.name, **config.model.options.to_dict()}
            load = config.init.options.to_dict() | {"init_missing": ()}
        method, fixed = config.method.name, config.method.options.to_dict()
        if method and args.method in (None, method):
            fixed = fixed if args.keep_rate is None else at_keep_rate(method, fixed, args.keep_rate)
            options |= {"method": method, **fixed}
    return options | method_options(args), load | weights_options(args)


@dataclasses.dataclass(frozen=True)
class Target:
    """A model to look at.

    Attributes:
      load: reads its weights, the slow part, after everything else has been checked; SlimError if the file is missing,
        damaged or of another model.
      asked: what was, see there.
      run: the training run it is of, where it is of one.
    """

    model: Any
    title: str
    preprocess: Preprocess
    load: Callable[[], Any]
    asked: tuple[dict[str, Any], dict[str, Any]]
    run: TrainingRun | None = None


def open_target(args: argparse.Namespace) -> Target:
    """The model, its preprocessing and the whereabouts of its weights; what is cheap to check about them is checked."""
    from slimvit_jax import convert, create_model, open_run
    from slimvit_jax.models import check_weights_of

    said = asked(args)
    options, load = {**said[0]}, {**said[1], "inference": True}
    name = options.pop("name", None)
    name = args.model or name
    if args.workdir:
        if args.model or args.weights:
            raise SlimError("--workdir names model and weights already; leave out --model and --weights")
        run = open_run(args.workdir)
        stage = run.stage(args.stage)
        model = run.create(stage, **options)
        read = functools.partial(run.variables, model, stage, **load)
        return Target(model, f"{run.config.name}/{stage}", preprocess_of(args, model), read, said, run)
    if not name or not args.weights:
        lacking = "--model NAME" if not name else "--weights FILE"
        raise SlimError(f"{lacking} is missing; give --model with --weights, or --workdir RUN of a training run")
    if args.stage:
        raise SlimError(f"--stage {args.stage} goes with --workdir")
    model = create_model(name, **options)
    if not args.weights.startswith("hf-hub:") and not Path(args.weights).exists():
        raise SlimError(f"no weights file {args.weights!r}")
    check_weights_of(name, args.weights, "--weights")
    read = functools.partial(convert.load, model, args.weights, **load)
    return Target(model, name, preprocess_of(args, model), read, said)


def preprocess_of(args: argparse.Namespace, model: Any) -> Preprocess:
    """The model's preprocessing, with what the command line sets on top."""
    from slimvit_jax import transform_for

    changes = {key: getattr(args, key, None) for key in ("mean", "std", "interpolation", "crop_pct")}
    return transform_for(model).replace(**{key: value for key, value in changes.items() if value is not None})


def open_source(args: argparse.Namespace, target: Target, split: str | None = None) -> Source:
    """The labelled images: --data, or the run's; of `split`, --split or the evaluation split."""
    from slimvit_jax import data

    given, split = parse_options(args.data_option), split or args.split
    if args.data is not None:
        source = data.open_source(args.data, split or "test", args.data_dir, **given)
    elif target.run is not None:
        source = target.run.source(split, args.data_dir, **given)
    else:
        raise SlimError("--data NAME is missing: digits, fashion_mnist, folder, or a TFDS name")
    if target.model.num_classes and source.num_classes != target.model.num_classes:
        raise SlimError(
            f"{source.name} has {source.num_classes} classes, the model {target.model.num_classes};"
            " it takes other data or other weights"
        )
    return source


def class_names(args: argparse.Namespace, target: Target) -> tuple[str, ...]:
    """Names of the classes: lines of the file --classes, or those of the run's data; empty where nobody knows them."""
    if args.classes:
        names = tuple(read_text(args.classes).splitlines())
        if len(names) != target.model.num_classes:
            raise SlimError(f"{args.classes} has {len(names)} lines, the model {target.model.num_classes} classes")
        return names
    return target.run.class_names if target.run is not None else ()


def read_images(files: list[str], preprocess: Preprocess) -> np.ndarray:
    """(B, H, W, C) uint8 of image files, resized and cropped as the model wants them; a SlimError names a bad file."""
    import numpy as np

    return np.stack([preprocess.pixels(file) for file in files])


def not_over(path: Path, inputs: Iterable[str | Path | None]) -> Path:
    """`path`, where nothing that is read lies; a SlimError if one of the inputs does, or a folder."""
    if path.is_dir():
        raise SlimError(f"{str(path)!r} is a folder, not a file to write")
    for read in inputs:
        if read and path.exists() and os.path.exists(read) and os.path.samefile(path, read):
            raise SlimError(f"{str(path)!r} would be written over {str(read)!r}, which is read; choose another place")
    return path


def writable_file(text: str, inputs: Iterable[str | Path | None] = ()) -> Path:
    """The file to write; a SlimError for no name, a folder, a folder that is not there, or one of the inputs."""
    path = Path(text)
    if not path.name or text.endswith(os.sep):
        raise SlimError(f"{text!r} names no file to write")
    if not path.parent.is_dir():
        raise SlimError(f"no folder {str(path.parent)!r} to write {path.name!r} to")
    _check_writable(path.parent)
    return not_over(path, inputs)


def writable_folder(path: str) -> Path:
    """The folder, made if it is missing; a SlimError if that cannot be."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SlimError(f"cannot make the folder {path!r}: {error.strerror}") from error
    return _check_writable(folder)


def _check_writable(folder: Path) -> Path:
    if not os.access(folder, os.W_OK | os.X_OK):
        raise SlimError(f"cannot write to the folder {str(folder)!r}: no permission, or a read-only disk")
    return folder
