"""Milliseconds of a batch, dense against slimmed: JAX, ONNX Runtime, OpenVINO and timm, whole tables.

    python -m benchmarks.latency --out=results/latency.jsonl                    every cell that is not there yet
    python -m benchmarks.latency --out=results/latency.jsonl --only='deit_tiny.*/224/.*' --list
    python -m benchmarks.latency --out=results/latency.jsonl --table > results/latency.md

A cell is a model, a size and a batch: all its programs take turns, round after round, so that what slows the machine
slows them all. Its rows are written together, and a cell that is there is not done again. Sides that are no whole
number of patches become the nearest that are. Slimmed is life regression at 0.7 and 0.5, dropping after layers 4, 7
and 10. Weights are random: speed does not depend on them. timm runs in a process of its own, dense, eager and compiled;
ONNX Runtime and OpenVINO run the file that `slim.export` writes for this batch size. What is not installed is noted and
left out.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import itertools
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.command import command_line, in_one_line, listed, read_rows, write_rows
from slimvit_jax.errors import SlimError, unknown

MODELS = ("deit_tiny_patch16_224", "deit_small_patch16_224", "deit_base_patch16_224", "vit_small_patch14_dinov2")
RUNNERS = ("jax", "onnxruntime", "openvino", "timm", "compile")
RATES = (0.7, 0.5)
Call = Callable[[], Any]


def side_of(model: str, wanted: int) -> int:
    """The side nearest to `wanted` that is a whole number of the model's patches.

    >>> side_of("vit_small_patch14_dinov2", 384), side_of("deit_tiny_patch16_224", 518)
    (378, 512)
    """
    patch = int(re.search(r"patch(\d+)", model).group(1))  # type: ignore[union-attr]
    return patch * round(wanted / patch)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.latency", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--out", required=True, type=Path, metavar="FILE", help="rows are added to it")
    add("--models", type=listed(str), default=list(MODELS), metavar="NAME,...")
    add("--sizes", type=listed(int), default=[224, 384, 518], metavar="PX,...")
    add("--batches", type=listed(int), default=[1, 4, 16], metavar="B,...")
    add("--runners", type=listed(str), default=list(RUNNERS), metavar="NAME,...", help=", ".join(RUNNERS))
    add("--rounds", type=int, default=7, metavar="N", help="samples of each program")
    add("--seconds", type=float, default=0.2, metavar="S", help="least length of a sample")
    add(
        "--pause",
        type=float,
        default=0.05,
        metavar="S",
        help="before each sample, for what the one before leaves spinning",
    )
    add("--only", default=".*", metavar="REGEX", help="cells whose whole name, MODEL/PX/B, it matches")
    add("--list", action="store_true", help="print the cells and whether they are done")
    add("--table", action="store_true", help="print the tables of what is done; measure nothing")
    args = parser.parse_args(argv)
    for runner in args.runners:
        if runner not in RUNNERS:
            raise unknown("runner", runner, RUNNERS)
    if min(args.rounds, *args.batches, *args.sizes) < 1:
        raise SlimError("rounds, batches and sizes must be at least 1")
    return args


class Programs:
    """What one cell runs, by (runner, variant): "dense", or a keep rate."""

    def __init__(self, name: str, side: int, batch: int, runners: list[str]) -> None:
        import slimvit_jax as slim

        self.name, self.side, self.batch, self.runners = name, side, batch, runners
        own = {"img_size": side} | ({"num_classes": 1000} if "dinov2" in name else {})
        self.models = {"dense": slim.create_model(name, slim.Slimming(), **own)}
        for rate in RATES:
            self.models[f"{rate:g}"] = slim.create_model(name, "life_regression", keep_rate=rate, **own)
        self.flops = {variant: slim.flops(model).total for variant, model in self.models.items()}
        self.notes: list[str] = []

    def calls(self, folder: Path, worker: Any) -> Iterator[tuple[tuple[str, str], Any]]:
        """Samplers, each compiled and warm."""
        from benchmarks.programs import forward, variables_for
        from slimvit_jax.inference.timing import sampler

        for variant, model in self.models.items():
            if "jax" in self.runners:
                yield ("jax", variant), sampler(forward(model, self.batch).call)
            files = [r for r in ("onnxruntime", "openvino") if r in self.runners and self._there(r)]
            if not files:
                continue
            path = folder / f"{variant}.onnx"
            try:
                self._export(model, variables_for(model), path)
            except SlimError as error:
                self.notes.append(f"{variant}: {error}")
                continue
            images = np.random.default_rng(1).normal(size=(self.batch, self.side, self.side, 3)).astype(np.float32)
            for runner in files:
                yield (runner, variant), sampler(_SESSIONS[runner](str(path), images))
        for runner in (r for r in ("timm", "compile") if r in self.runners and worker is not None):
            yield from self._timm(worker, runner)

    def _there(self, package: str) -> bool:
        there = importlib.util.find_spec(package) is not None
        if not there and package not in self.notes:
            self.notes.append(f"{package}: not installed")
        return there

    def _export(self, model: Any, variables: Any, path: Path) -> None:
        import slimvit_jax as slim

        slim.export(model, variables, path, batch_size=self.batch)

    def _timm(self, worker: Any, runner: str) -> Iterator[tuple[tuple[str, str], Any]]:
        from benchmarks.timm_worker import WorkerError

        threads = len(os.sched_getaffinity(0))
        try:
            options = {"img_size": self.side}
            number = worker.build(self.name, self.batch, "float32", runner == "compile", "cpu", threads, options)
        except WorkerError as error:
            self.notes.append(f"{runner}: {error}")
        else:
            yield (runner, "dense"), worker.sampler(number)


def _onnxruntime(path: str, images: np.ndarray) -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    given = {session.get_inputs()[0].name: images}
    return lambda: session.run(None, given)


def _openvino(path: str, images: np.ndarray) -> Call:
    import openvino

    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": len(os.sched_getaffinity(0)),
        "INFERENCE_PRECISION_HINT": "f32",
    }
    request = openvino.Core().compile_model(path, "CPU", settings).create_infer_request()
    return lambda: request.infer([images])


_SESSIONS: dict[str, Callable[[str, np.ndarray], Call]] = {"onnxruntime": _onnxruntime, "openvino": _openvino}


def measure(args: argparse.Namespace, name: str, side: int, batch: int) -> list[dict[str, Any]]:
    """The rows of a cell."""
    from benchmarks.timm_worker import Timm
    from slimvit_jax.inference.timing import interleave

    programs = Programs(name, side, batch, args.runners)
    torch = {"timm", "compile"} & set(args.runners) and programs._there("timm")
    with contextlib.ExitStack() as stack:
        worker = stack.enter_context(Timm()) if torch else None
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        samplers = dict(programs.calls(folder, worker))
        timed = interleave(samplers, args.rounds, args.seconds, args.pause if len(args.runners) > 1 else 0.0)
    rows = []
    for (runner, variant), timing in timed.items():
        dense = timed[runner, "dense"]
        ratio = float(np.median(np.divide(dense.wall, timing.wall)))
        flops = programs.flops["dense"] / programs.flops[variant]
        row = {"cell": f"{name}/{side}/{batch}", "model": name, "side": side, "batch": batch}
        row |= {"runner": runner, "variant": variant, "ms": 1000 * timing.median, "speed_ratio": ratio}
        row |= {"flops_ratio": flops, "of_flops_ratio": ratio / flops, "flops": programs.flops[variant]}
        rows.append(row | {"wall": list(timing.wall), "cpu": list(timing.cpu), "notes": programs.notes})
    return rows


def tables(rows: list[dict[str, Any]]) -> str:
    """Markdown, a line per cell: the dense model's milliseconds in every runner, and the speed when slimmed."""
    from benchmarks.results import table

    runners = [r for r in RUNNERS if any(row["runner"] == r for row in rows)]
    ours = [r for r in runners if any(row["runner"] == r and row["variant"] != "dense" for row in rows)]
    by_key = {(row["cell"], row["variant"], row["runner"]): row for row in rows}
    text = lambda key, field, form: format(by_key[key][field], form) if key in by_key else "—"
    cells = []
    models = list(dict.fromkeys(row["model"] for row in rows))
    order = lambda row: (models.index(row["model"]), row["side"], row["batch"])
    for row in sorted({row["cell"]: row for row in rows}.values(), key=order):
        line = [row["model"], str(row["side"]), str(row["batch"])]
        line += [text((row["cell"], "dense", runner), "ms", ",.1f") for runner in runners]
        for rate in map(str, RATES if ours else ()):
            line.append(text((row["cell"], rate, ours[0]), "flops_ratio", ".2f"))
            line += [text((row["cell"], rate, runner), "speed_ratio", ".2f") for runner in ours]
        cells.append(line)
    heads = ["model", "px", "batch", *(f"{runner}, ms" for runner in runners)]
    slimmed = ["x fewer FLOPs", *(f"x {runner}" for runner in ours)] if ours else []
    heads += [f"{rate}: {head}" for rate in RATES for head in slimmed]
    machines = {f"{row['machine']['processor']}, {row['machine']['cores']} core(s)" for row in rows}
    dates = sorted(row["machine"]["date"][:10] for row in rows)
    return f"{table(heads, cells)}\n\n{'; '.join(sorted(machines))}; {dates[0]} to {dates[-1]}.\n"


def run(args: argparse.Namespace) -> int:
    """Measures the cells that are not done, or prints what is asked for."""
    from slimvit_jax.inference.timing import describe_machine

    rows = read_rows(args.out)
    if args.table:
        if not rows:
            raise SlimError(f"{args.out}: there are no rows to make a table of")
        print(tables(rows), end="")
        return 0
    done = {row["cell"] for row in rows}
    whole = itertools.product(args.batches, args.models, args.sizes)  # the small ones first
    cells = [(name, side_of(name, size), batch) for batch, name, size in whole]
    cells = [cell for cell in cells if re.fullmatch(args.only, "{}/{}/{}".format(*cell))]
    if not cells:
        raise SlimError(f"--only={args.only!r} matches no cell; see them with --list")
    command = command_line("latency")
    for cell in cells:
        name = "{}/{}/{}".format(*cell)
        if args.list:
            print(f"{'done' if name in done else 'to do':6} {name}")
        elif name not in done:
            machine = describe_machine()
            found = measure(args, *cell)
            rows += [{**row, "command": command, "machine": machine} for row in found]
            write_rows(args.out, rows)
            print(name, *(f"{row['runner']} {row['variant']} {row['ms']:.1f}" for row in found), sep="  ", flush=True)
    return 0


@in_one_line
def main(argv: list[str] | None = None) -> int:
    """Runs the command; exit status 2 for bad input."""
    return run(parse(argv))


if __name__ == "__main__":
    from slimvit_jax.huge_pages import restart_with_huge_pages

    restart_with_huge_pages()
    sys.exit(main())
