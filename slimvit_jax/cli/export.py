"""`python -m slimvit_jax export FILE`: the inference function as one file, ONNX or StableHLO by its suffix."""

from __future__ import annotations

import argparse
import os

from slimvit_jax.cli import arguments, common
from slimvit_jax.errors import SlimError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.description = (
        "Writes images (B, H, W, C) float32 -> logits (B, classes) float32, the weights inside, and runs "
        "the file once. FILE.onnx is read by ONNX Runtime, OpenVINO, TensorRT and others; FILE.stablehlo by "
        "jax.export.deserialize(bytes).call(images). Preprocessing and class names travel in the file."
    )
    parser.add_argument("file", metavar="FILE", help="the file to write: FILE.onnx or FILE.stablehlo")
    arguments.add_model(parser)
    parser.add_argument("--batch-size", default="any", metavar="B", help="a number, or any (default)")
    parser.add_argument(
        "--outputs",
        default="logits",
        metavar="NAME,NAME",
        help="logits, or features (what the classifier reads); tokens, kept, scores (default: %(default)s)",
    )
    parser.add_argument("--classes", metavar="FILE", help="names of the classes, one a line (default: the run's)")
    parser.add_argument("--platforms", metavar="P,P", help="of a .stablehlo: cpu, cuda, tpu, rocm (default: cpu)")
    parser.add_argument("--mlir", metavar="FILE", help="of a .stablehlo: also write its text to this file")
    arguments.add_preprocess(parser)


def run(args: argparse.Namespace) -> int:
    """Writes the file and says what is in it."""
    batch = _batch(args.batch_size)
    platforms = None if args.platforms is None else tuple(name.strip() for name in args.platforms.split(","))
    file = common.writable_file(args.file, [args.weights, args.classes])
    text = None if args.mlir is None else common.writable_file(args.mlir, [args.weights, args.classes, args.file])
    if text is not None and os.path.realpath(text) == os.path.realpath(file):
        raise SlimError(f"--mlir {args.mlir} is the file of the artifact itself; choose another name")
    target = common.open_target(args)

    from slimvit_jax.inference import export

    outputs = tuple(name.strip() for name in args.outputs.split(","))
    export.check_export(target.model, file, outputs, platforms)
    if text is not None and file.suffix != ".stablehlo":
        raise SlimError(f"--mlir {args.mlir} goes with FILE.stablehlo")
    names = common.class_names(args, target) or target.model.class_names
    if file.suffix == ".stablehlo":
        platforms = platforms or ("cpu",)
    report = export.export(
        target.model,
        target.load(),
        file,
        batch_size=batch,
        outputs=outputs,
        platforms=platforms,
        preprocess=target.preprocess,
        class_names=names,
    )
    if text is not None:
        export.write_mlir(file, text)
    given = ", ".join(f"{name} {kind}" for name, kind in report.outputs.items())
    height, width = target.model.img_size
    takes = f"images float32[{batch or 'batch'},{height},{width},{target.model.in_chans}]"
    print(f"{file}: {file.stat().st_size / 1e6:.1f} MB, {takes} -> {given}")
    prepare = target.preprocess
    print(f"images: pixels / 255, then (x - {list(prepare.mean)}) / {list(prepare.std)}, NHWC; {len(names)} names")
    if report.difference is None:
        print(f"not run here: written for {', '.join(platforms or ())}")
    else:
        agree = f"{report.agreeing} of {report.images} random images agree with the model"
        print(f"run once: {agree}, largest difference {report.difference:.1e}")
    return 0


def _batch(text: str) -> int | None:
    return None if text == "any" else _positive(text)


def _positive(text: str) -> int:
    try:
        return arguments.positive(text)
    except argparse.ArgumentTypeError as error:
        raise SlimError(f"--batch-size: {error}; or any") from None
