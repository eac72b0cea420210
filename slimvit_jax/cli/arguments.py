"""The arguments that several commands take, and the kinds of their values."""

from __future__ import annotations

import argparse

#: What `slim.load` reads.
KINDS = ".safetensors, .npz, .pth, .bin, *.index.json, a folder of transformers, an Orbax directory, hf-hub:OWNER/NAME"


def add_method(parser: argparse.ArgumentParser) -> None:
    """--method, --keep-rate, --set: what `common.method_options` reads."""
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


def add_model(parser: argparse.ArgumentParser, weights: bool = True) -> None:
    """--workdir, or --model with --weights, and the method's: what `common.open_target` reads."""
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
        add_weights(parser)
    add_method(parser)


def add_weights(parser: argparse.ArgumentParser) -> None:
    """How weights are fitted to the model: what `common.weights_options` reads. What is not given is not said."""
    group = parser.add_argument_group("fitting the weights to the model", argument_default=argparse.SUPPRESS)
    group.add_argument(
        "--init-missing",
        action="append",
        metavar="PREFIX",
        help="initialise at random what is missing under this name, or has another size (head); method: all that the "
        "method owns; may be repeated",
    )
    group.add_argument("--ignore", action="append", metavar="PREFIX", help="leave out what the model has no place for")
    group.add_argument(
        "--resample-pos-embed",
        nargs="?",
        const=True,
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


def grid(text: str) -> tuple[int, int]:
    """ROWS,COLS, for argparse."""
    rows, comma, columns = text.partition(",")
    if not comma:
        raise argparse.ArgumentTypeError(f"{text!r} is not ROWS,COLS")
    return positive(rows), positive(columns)


def add_images(parser: argparse.ArgumentParser, batch_size: int = 64) -> None:
    """--data and its kin, and the preprocessing: what `common.open_source` and `open_target` read."""
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
    add_preprocess(parser)


def add_preprocess(parser: argparse.ArgumentParser) -> None:
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
