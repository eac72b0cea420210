"""What the commands share: which model, which weights, which images, and how a table looks."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slimvit_jax.errors import SlimError

if TYPE_CHECKING:
    import numpy as np
    from rich.table import Table

    from slimvit_jax.data import Source
    from slimvit_jax.images import Preprocess


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
        parser.add_argument(
            "--weights", metavar="FILE", help=".safetensors .pth .npz, an Orbax directory, hf-hub:timm/NAME"
        )
        parser.add_argument("--workdir", metavar="RUN", help="a finished training run: its model, weights and data")
        parser.add_argument(
            "--stage", metavar="NAME", help="with --workdir: the weights after this stage, not the last"
        )
        parser.add_argument(
            "--init-missing",
            action="append",
            default=[],
            metavar="PREFIX",
            help="initialise at random what the weights lack under this name, such as life_predictor; may be repeated",
        )
    add_method_arguments(parser)


def add_image_arguments(parser: argparse.ArgumentParser, batch_size: int = 64) -> None:
    """--data and its kin, and the preprocessing: what `open_source` and `open_target` read."""
    data = parser.add_argument_group("images")
    data.add_argument("--data", metavar="NAME", help="digits, fashion_mnist, folder, or a TFDS name")
    data.add_argument("--split", metavar="NAME", help="default: the run's, else test")
    data.add_argument("--data-dir", metavar="DIR", help="where the files are; DIR/SPLIT/CLASS/* for folder")
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


def numbers(text: str) -> tuple[float, ...]:
    """Comma-separated numbers, for argparse."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a comma-separated list of numbers") from None


def rate_list(text: str) -> tuple[float, ...]:
    """Comma-separated keep rates, each in (0, 1]."""
    from slimvit_jax.plan import check_keep_rate

    try:
        rates = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise SlimError(f"keep rate {text!r} is not a number in (0, 1], nor a comma-separated list of them") from None
    for rate in rates:
        check_keep_rate(rate)
    return rates


def method_options(args: argparse.Namespace) -> dict[str, Any]:
    """Keywords for create_model from --method, --keep-rate and --set."""
    from slimvit_jax import list_methods
    from slimvit_jax.convert.command import parse_options

    options = parse_options(args.options)
    if args.keep_rate is not None:
        if args.method is None and not getattr(args, "workdir", None):
            raise SlimError(f"--keep-rate {args.keep_rate} needs --method NAME; choices: {', '.join(list_methods())}")
        rates = rate_list(args.keep_rate)
        options["keep_rate"] = rates if len(rates) > 1 else rates[0]
    if args.method is not None:
        options["method"] = args.method
    return options


@dataclasses.dataclass(frozen=True)
class Target:
    """A model to look at. Its weights are read by `load`, the slow part, after everything else has been checked."""

    model: Any
    title: str
    weights: str
    preprocess: Preprocess
    config: Any = None  # of the training run, where it is one
    init_missing: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()  # names of parameters in the file that the model has no place for

    def load(self) -> Any:
        """The variables; a SlimError if the file is missing, damaged or of another model."""
        from slimvit_jax.convert.io import load

        return load(self.model, self.weights, init_missing=self.init_missing, ignore=self.ignore, inference=True)


def open_target(args: argparse.Namespace) -> Target:
    """The model, its preprocessing and the whereabouts of its weights; what is cheap to check about them is checked."""
    if args.workdir:
        return _from_run(args)
    if not args.model or not args.weights:
        lacking = "--model NAME" if not args.model else "--weights FILE"
        raise SlimError(f"{lacking} is missing; give --model with --weights, or --workdir RUN of a training run")
    if args.stage:
        raise SlimError(f"--stage {args.stage} goes with --workdir")
    from slimvit_jax import create_model

    model = create_model(args.model, **method_options(args))
    if not args.weights.startswith("hf-hub:") and not Path(args.weights).exists():
        raise SlimError(f"no weights file {args.weights!r}")
    preprocess = preprocess_of(args, model)
    return Target(model, args.model, args.weights, preprocess, init_missing=tuple(args.init_missing))


def preprocess_of(args: argparse.Namespace, model: Any) -> Preprocess:
    """The model's preprocessing, with what the command line sets on top."""
    from slimvit_jax import transform_for

    changes = {key: getattr(args, key, None) for key in ("mean", "std", "interpolation", "crop_pct")}
    return transform_for(model).replace(**{key: value for key, value in changes.items() if value is not None})


def _from_run(args: argparse.Namespace) -> Target:
    if args.model or args.weights:
        raise SlimError("--workdir names model and weights already; leave out --model and --weights")
    from slimvit_jax.cli import runs

    return runs.open_run(args)


def open_source(args: argparse.Namespace, target: Target) -> Source:
    """The labelled images: --data, or the run's evaluation set."""
    from slimvit_jax import data

    if args.data is None and target.config is None:
        raise SlimError("--data NAME is missing: digits, fashion_mnist, folder, or a TFDS name")
    if args.data is None:
        own = target.config.data
        split, where = args.split or own.eval_split, args.data_dir or own.data_dir or None
        source = data.open_source(own.name, split, where, **own.options)
    else:
        source = data.open_source(args.data, args.split or "test", args.data_dir)
    if target.model.num_classes and source.num_classes > target.model.num_classes:
        raise SlimError(
            f"{source.name} has {source.num_classes} classes, the model {target.model.num_classes};"
            " it takes other data or other weights"
        )
    return source


def class_names(args: argparse.Namespace, target: Target) -> tuple[str, ...]:
    """Names of the classes: lines of the file --classes, or those of the run's data; empty where nobody knows them."""
    from slimvit_jax import data

    if args.classes:
        path = Path(args.classes)
        if not path.is_file():
            raise SlimError(f"no file of class names {args.classes!r}")
        names = tuple(path.read_text(encoding="utf-8").splitlines())
        if len(names) != target.model.num_classes:
            raise SlimError(f"{path} has {len(names)} lines, the model {target.model.num_classes} classes")
        return names
    if target.config is None:
        return ()
    own = target.config.data
    try:
        return data.open_source(own.name, own.eval_split, own.data_dir or None, **own.options).class_names
    except SlimError:  # the run's data are not on this machine; class numbers will do
        return ()


def read_images(files: list[str], preprocess: Preprocess) -> np.ndarray:
    """(B, H, W, C) uint8 of image files, resized and cropped as the model wants them; a SlimError names a bad file."""
    import numpy as np

    return np.stack([preprocess.pixels(file) for file in files])


def writable_folder(path: str) -> Path:
    """The folder, made if it is missing; a SlimError if that cannot be."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SlimError(f"cannot make the folder {path!r}: {error.strerror}") from error
    return folder


def table(*columns: str, title: str | None = None) -> Table:
    """A rich table whose first column is text and whose others are right-aligned numbers."""
    from rich import box
    from rich.table import Table

    result = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False, padding=(0, 1, 0, 0))
    for place, column in enumerate(columns):
        result.add_column(column, justify="right" if place else "left", no_wrap=True)
    return result


def show(*parts: Any) -> None:
    """Prints tables or text to standard output, as wide as they are: a narrow terminal wraps lines, nothing is cut."""
    from rich.console import Console
    from rich.measure import Measurement

    console = Console(highlight=False, soft_wrap=True)
    wide = console.options.update(width=1000)
    console.width = max([console.width, *(Measurement.get(console, wide, part).maximum for part in parts)])
    console.print(*parts)


@contextlib.contextmanager
def progress(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on standard error over `total` images; yields a function of the number done so far.

    Shows images/s and the time left. Nothing is drawn where standard error is no terminal.
    """
    from tqdm import tqdm

    with tqdm(total=total, desc=title, unit=" images", leave=False, disable=None) as bar:

        def advance(done: int) -> None:
            bar.update(min(done, total) - bar.n)

        yield advance
