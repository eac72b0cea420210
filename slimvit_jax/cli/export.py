"""`python -m slimvit_jax export FILE`: the inference function as one serialised StableHLO artifact (jax.export)."""

from __future__ import annotations

import argparse
import os
from typing import Any

from slimvit_jax.cli import common
from slimvit_jax.errors import SlimError


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Adds the `export` command."""
    parser = subparsers.add_parser(
        "export",
        help="write the inference function as a StableHLO file",
        description="Writes images (B, H, W, C) float32 -> logits (B, classes) float32, the weights inside. Read it "
        "with jax.export.deserialize(bytes).call(images), on any of the platforms it was written for.",
    )
    parser.add_argument("file", metavar="FILE", help="the file to write")
    common.add_model_arguments(parser)
    parser.add_argument("--batch-size", default="any", metavar="B", help="a number, or any (default)")
    parser.add_argument("--platforms", default="cpu", metavar="P,P", help="cpu, cuda, tpu, rocm (default: %(default)s)")
    parser.add_argument("--mlir", metavar="FILE", help="also write the StableHLO text to this file")
    common.add_preprocess_arguments(parser)
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Writes the file and says what is in it."""
    batch = _batch(args.batch_size)
    platforms = [_platform(name) for name in args.platforms.split(",")]
    file = common.writable_file(args.file, [args.weights])
    text = None if args.mlir is None else common.writable_file(args.mlir, [args.weights, args.file])
    if text is not None and os.path.realpath(text) == os.path.realpath(file):
        raise SlimError(f"--mlir {args.mlir} is the file of the artifact itself; choose another name")
    target = common.open_target(args)
    variables = target.load()

    from slimvit_jax.files import atomic_path, write_text
    from slimvit_jax.inference.export import export_inference

    exported = export_inference(target.model, variables, batch, platforms)
    with atomic_path(file) as temporary:
        temporary.write_bytes(exported.serialize())
    if text is not None:
        write_text(text, exported.mlir_module())
    prepare = target.preprocess
    print(f"{file}: {file.stat().st_size / 1e6:.1f} MB, {exported.in_avals[0]} -> {exported.out_avals[0]}")
    print(f"images: pixels / 255, then (x - {list(prepare.mean)}) / {list(prepare.std)}, NHWC")
    return 0


def _batch(text: str) -> int | None:
    return None if text == "any" else _positive(text)


def _positive(text: str) -> int:
    try:
        return common.positive(text)
    except argparse.ArgumentTypeError as error:
        raise SlimError(f"--batch-size: {error}; or any") from None


def _platform(name: str) -> str:
    from slimvit_jax.errors import unknown

    choices = ("cpu", "cuda", "rocm", "tpu")
    if name.strip() not in choices:
        raise unknown("platform", name.strip(), choices)
    return name.strip()
