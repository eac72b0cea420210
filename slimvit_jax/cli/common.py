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


#: What `slim.load` reads.
KINDS = ".safetensors, .npz, .pth, .bin, *.index.json, a folder of transformers, an Orbax directory, hf-hub:OWNER/NAME"


def add_method_arguments(parser: argparse.ArgumentParser) -> None:
    """--method, --keep-rate, --set: what `method_options` reads."""
    parser.add_argument("--method", metavar="NAME", help="slimming method; none: the dense model")
    parser.add_argument(
        "--keep-rate", metavar="R", help="share of patches kept at each location, or R,R,R one for each"
    )
    parser.add_argument(
        "--set",
        dest="options",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an option of the model or method, such as img_size=384 or num_classes=10; may be repeated",
    )


def add_model_arguments(parser: argparse.ArgumentParser, weights: bool = True) -> None:
    """--workdir, or --model with --weights, and the method's: what `open_target` reads."""
    parser.add_argument("--model", metavar="NAME", help="model or family (see the command `models`)")
    if weights:
        parser.add_argument("--weights", metavar="FILE", help=KINDS)
        parser.add_argument("--workdir", metavar="RUN", help="a finished training run: its model, weights and data")
        parser.add_argument(
            "--stage", metavar="NAME", help="with --workdir: the weights after this stage, not the last"
        )
        parser.add_argument(
            "--config",
            metavar="FILE",
            help="model and method of a config, such as the one that tune writes; with --workdir its method alone",
        )
        add_weights_arguments(parser)
    add_method_arguments(parser)


def add_weights_arguments(parser: argparse.ArgumentParser) -> None:
    """How weights are fitted to the model: what `weights_options` reads."""
    group = parser.add_argument_group("fitting the weights to the model")
    group.add_argument(
        "--init-missing",
        action="append",
        default=[],
        metavar="PREFIX",
        help="initialise at random what is missing under this name, or has another size (head); method: all that the "
        "method owns; may be repeated",
    )
    group.add_argument(
        "--ignore", action="append", default=[], metavar="PREFIX", help="leave out what the model has no place for"
    )
    group.add_argument(
        "--resample-pos-embed",
        nargs="?",
        const=True,
        default=False,
        type=grid,
        metavar="ROWS,COLS",
        help="resample a position embedding of another grid, square unless ROWS,COLS says otherwise",
    )
    group.add_argument(
        "--no-antialias",
        dest="antialias",
        action="store_false",
        help="resample as transformers does, for weights that were trained or tuned there",
    )
    group.add_argument(
        "--checkpoint-key",
        metavar="KEY",
        help="the entry of a checkpoint with several sets of weights (default: the average, such as model_ema)",
    )
    group.add_argument(
        "--inference",
        action="store_true",
        help="leave out what only training reads (SiT's recovery, auxiliary heads); only convert asks",
    )


def grid(text: str) -> tuple[int, int]:
    """ROWS,COLS, for argparse."""
    rows, comma, columns = text.partition(",")
    if not comma:
        raise argparse.ArgumentTypeError(f"{text!r} is not ROWS,COLS")
    return positive(rows), positive(columns)


def add_image_arguments(parser: argparse.ArgumentParser, batch_size: int = 64) -> None:
    """--data and its kin, and the preprocessing: what `open_source` and `open_target` read."""
    data = parser.add_argument_group("images")
    data.add_argument("--data", metavar="NAME", help="digits, fashion_mnist, folder, or a TFDS name")
    data.add_argument("--split", metavar="NAME", help="default: the run's, else test")
    data.add_argument("--data-dir", metavar="DIR", help="where the files are; DIR/SPLIT/CLASS/* for folder")
    data.add_argument(
        "--data-option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an option of the data, such as allow_missing_classes=true; may be repeated",
    )
    data.add_argument("--batch-size", type=positive, default=batch_size, metavar="B")
    add_preprocess_arguments(parser)


def add_preprocess_arguments(parser: argparse.ArgumentParser) -> None:
    """--mean, --std, --interpolation, --crop-pct; each defaults to what the model or the run was trained with."""
    group = parser.add_argument_group("preprocessing (default: the model's or the run's own)")
    group.add_argument("--mean", type=numbers, metavar="M,M,M")
    group.add_argument("--std", type=numbers, metavar="S,S,S")
    group.add_argument("--interpolation", metavar="KIND", help="nearest, bilinear, bicubic or lanczos")
    group.add_argument("--crop-pct", type=float, metavar="P")


def positive(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def natural(text: str) -> int:
    """A whole number of at least 0, for argparse."""
    if not (text.isdecimal() and text.isascii()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def numbers(text: str) -> tuple[float, ...]:
    """Comma-separated numbers, for argparse."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a comma-separated list of numbers") from None


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
        if args.method in (None, *DENSE) and not getattr(args, "workdir", None):
            raise SlimError(f"--keep-rate {args.keep_rate} needs --method NAME; choices: {', '.join(list_methods())}")
        rates = rate_list(args.keep_rate)
        options["keep_rate"] = rates if len(rates) > 1 else rates[0]
    if args.method is not None:
        options["method"] = Slimming() if args.method in DENSE else args.method
    return options


def of_config(args: argparse.Namespace) -> dict[str, Any]:
    """Keywords for create_model from --config: "name" and the model's options, without --workdir, and the method's."""
    if not getattr(args, "config", None):
        return {}
    from slimvit_jax.training import load_config

    config = load_config(args.config)
    own = {} if args.workdir else {"name": config.model.name, **config.model.options.to_dict()}
    chosen = {"method": config.method.name, **config.method.options.to_dict()} if config.method.name else {}
    return {**own, **(chosen if args.method in (None, config.method.name) else {})}


#: Of `slim.load`, where nothing else is asked for.
AS_THEY_ARE = {
    "init_missing": (),
    "ignore": (),
    "resample_pos_embed": False,
    "antialias": True,
    "checkpoint_key": None,
    "inference": False,
}


def weights_options(args: argparse.Namespace) -> dict[str, Any]:
    """Keywords for `slim.load` from the arguments of `add_weights_arguments`; what they leave open as --config has it.

    But what is to be initialised at random is not the config's to say: it is meant for training.
    """
    given = {key: getattr(args, key) for key in AS_THEY_ARE}
    given |= {key: tuple(given[key]) for key in ("init_missing", "ignore")}
    said = {key: value for key, value in given.items() if value != AS_THEY_ARE[key]}
    if not getattr(args, "config", None) or args.workdir:
        return AS_THEY_ARE | said
    from slimvit_jax.training import load_config

    return AS_THEY_ARE | load_config(args.config).init.options.to_dict() | {"init_missing": ()} | said


@dataclasses.dataclass(frozen=True)
class Target:
    """A model to look at.

    Attributes:
      load: reads its weights, the slow part, after everything else has been checked; SlimError if the file is missing,
        damaged or of another model.
      run: the training run it is of, where it is of one.
    """

    model: Any
    title: str
    preprocess: Preprocess
    load: Callable[[], Any]
    run: TrainingRun | None = None


def open_target(args: argparse.Namespace) -> Target:
    """The model, its preprocessing and the whereabouts of its weights; what is cheap to check about them is checked."""
    from slimvit_jax import convert, create_model, open_run
    from slimvit_jax.models import check_weights_of

    options, load = {**of_config(args), **method_options(args)}, weights_options(args) | {"inference": True}
    name = options.pop("name", None)
    name = args.model or name
    if args.workdir:
        if args.model or args.weights:
            raise SlimError("--workdir names model and weights already; leave out --model and --weights")
        run = open_run(args.workdir)
        stage = run.stage(args.stage)
        model = run.create(stage, **options)
        read = functools.partial(run.variables, model, stage, **load)
        return Target(model, f"{run.config.name}/{stage}", preprocess_of(args, model), read, run)
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
    return Target(model, name, preprocess_of(args, model), read)


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
    return not_over(path, inputs)


def writable_folder(path: str) -> Path:
    """The folder, made if it is missing; a SlimError if that cannot be."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SlimError(f"cannot make the folder {path!r}: {error.strerror}") from error
    return folder
