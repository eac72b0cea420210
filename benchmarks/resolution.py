"""What larger images cost: time and peak memory of dense and slimmed models against their multiply-adds.

    python -m benchmarks.resolution [--sides 224,392,518,1022] [--methods M,M] [--rounds 3] [--out FILE.json]

DINOv2 ViT-S/14 with random weights, one image: 256, 784, 1,369 and 5,329 patches. Methods with locations run at --rate
there, ToMe at the multiply-adds of life regression. The models of one size take turns, so their ratios mean something
on a busy machine too; CPU seconds are of the whole process. Peak memory is what one forward pass adds to a process of
its own that holds program and weights. The JSON is written after every size; beside it a table in Markdown.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import slimvit_jax as slim
from benchmarks.command import in_one_line
from benchmarks.study_cells import LOCATIONS, spread
from slimvit_jax.errors import SlimError, unknown
from slimvit_jax.files import write_json, write_text
from slimvit_jax.inference.timing import describe_machine, interleave, sampler

MODEL = "vit_small_patch14_dinov2"
METHODS = (
    "dense",
    "life_regression",
    "coverage",
    "random",
    "topk",
    "evit",
    "tome",
    "atc",
    "dpcknn",
    "kmedoids",
    "sinkhorn",
)
#: What grows with the square of the number of patches in a method's own part.
QUADRATIC = {
    "tome": "similarity of every other patch to the rest",
    "atc": "distances of all pairs, rounds one after the other",
    "dpcknn": "distances of all pairs",
    "kmedoids": "distances of all pairs",
    "coverage": "distances of all pairs",
    "sinkhorn": "patches times centres",
}


def build(method: str, side: int, rate: float) -> Any:
    """The model at this keep rate."""
    if side % 14:
        raise SlimError(f"--sides: {side} is no multiple of the patch size, 14")
    common: dict[str, Any] = {"img_size": side, "num_classes": 0}
    if method == "dense":
        return slim.create_model(MODEL, **common)
    located = {"keep_rate": rate, "locations": LOCATIONS}
    reference = slim.create_model(MODEL, "life_regression", **common, **located)
    if method == "coverage":
        return slim.create_model(MODEL, "life_regression", lives="coverage", **common, **located)
    if method != "tome":
        return slim.create_model(MODEL, method, **common, **located)
    low, high, depth = 0, reference.geometry.num_patches, reference.depth
    while high - low > 1:  # merges in all that come nearest from below
        middle = (low + high) // 2
        try:
            cost = slim.flops(slim.create_model(MODEL, "tome", r=spread(middle, depth), **common)).total
        except SlimError:  # too few tokens left
            cost = 0
        low, high = (middle, high) if cost >= slim.flops(reference).total else (low, middle)
    return slim.create_model(MODEL, "tome", r=spread(low, depth), **common)


def program(method: str, side: int, rate: float) -> Any:
    """A compiled forward pass of one random image, weights inside, that returns when it is done."""
    model = build(method, side, rate)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, side, side, 3)))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.02, leaf.shape), leaf.dtype), shapes)
    image = jnp.asarray(rng.normal(0, 1, (1, side, side, 3)), jnp.float32)
    run = jax.jit(model.apply).lower(variables, image).compile()
    return lambda: jax.block_until_ready(run(variables, image))


def memory(method: str, side: int, rate: float) -> float:
    """MiB that a forward pass adds to a process of its own."""
    words = [sys.executable, "-m", "benchmarks.resolution", "--peak", method, str(side), str(rate)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SlimError(f"{method} at {side} px: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
    return float(done.stdout.split()[-1])


def peak(method: str, side: int, rate: float) -> None:
    """Prints what `memory` reads."""
    run = program(method, side, rate)
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    run()
    status = Path("/proc/self/status").read_text()
    high = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
    print(max(0, high - before) / 2**20)


def measure(side: int, methods: list[str], rate: float, rounds: int) -> list[dict[str, Any]]:
    """A row per method."""
    runs = {method: sampler(program(method, side, rate)) for method in methods}
    times = interleave(runs, rounds=rounds, min_seconds=0.5)
    rows = []
    for method in methods:
        model = build(method, side, rate)
        row: dict[str, Any] = {"side": side, "method": method, "patches": model.geometry.num_patches}
        row |= {"flops": slim.flops(model).total, "token_counts": list(model.slim.plan.token_counts)}
        row |= {"seconds": times[method].median, "cpu_seconds": times[method].median_cpu}
        rows.append(row | {"peak_mib": memory(method, side, rate)})
    return rows


def table(results: dict[str, Any]) -> str:
    """The rows in Markdown."""
    about = results["about"]
    machine = about["machine"]
    lines = [
        f"One image through DINOv2 ViT-S/14 in float32 on {machine['processor']}, on cores shared with other work, at "
        f"keep rate {about['rate']} (ToMe: at life regression's multiply-adds). Shares "
        "are of the dense model at the same size; times are CPU seconds.",
        "",
        "| side | patches | method | G multiply-adds | share | CPU s | share | peak MiB | share | with the square |",
        "|---:|---:|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    dense = {row["side"]: row for row in results["rows"] if row["method"] == "dense"}
    for row in results["rows"]:
        base = dense[row["side"]]
        share = {key: row[key] / base[key] for key in ("flops", "cpu_seconds", "peak_mib")}
        lines.append(
            f"| {row['side']} | {row['patches']:,} | {row['method']} | {row['flops'] / 1e9:.1f} | {share['flops']:.2f} "
            f"| {row['cpu_seconds']:.2f} | {share['cpu_seconds']:.2f} "
            f"| {row['peak_mib']:.0f} | {share['peak_mib']:.2f} | {QUADRATIC.get(row['method'], '')} |"
        )
    return "\n".join(lines) + "\n"


@in_one_line
def main(arguments: list[str] | None = None) -> int:
    """Runs the command; exit status 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.resolution", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--sides", default="224,392,518,1022", metavar="S,S", help="multiples of 14")
    parser.add_argument("--methods", default=",".join(METHODS), metavar="M,M", help="dense must be one of them")
    parser.add_argument("--rate", type=float, default=0.7, metavar="R")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--out", type=Path, default=Path("results/resolution.json"), metavar="FILE")
    parser.add_argument("--peak", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.peak:
        peak(args.peak[0], int(args.peak[1]), float(args.peak[2]))
        return 0
    methods = args.methods.split(",")
    for method in methods:
        if method not in METHODS:
            raise unknown("method", method, METHODS)
    if "dense" not in methods:
        raise SlimError("--methods: dense must be among them, the others are compared with it")
    results: dict[str, Any] = {"about": {"rate": args.rate, "machine": describe_machine()}, "rows": []}
    if args.out.exists():
        before = json.loads(args.out.read_text(encoding="utf-8"))
        results["rows"] = before["rows"] if before["about"]["rate"] == args.rate else []
    for side in map(int, args.sides.split(",")):
        if {row["method"] for row in results["rows"] if row["side"] == side} >= set(methods):
            continue
        results["rows"] = [row for row in results["rows"] if row["side"] != side]  # all of a size take turns
        results["rows"] += measure(side, methods, args.rate, args.rounds)
        write_json(args.out, results)
        write_text(args.out.with_suffix(".md"), table(results))
        print(f"{side} px: {len(methods)} models", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
