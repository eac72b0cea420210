"""Where the time of a forward pass goes: milliseconds per kind of compiled operation, on one core and on more.

    python -m benchmarks.profile --methods mctf,cropr --json results/cpu_profile.json
    python -m benchmarks.profile --json results/cpu_profile.json --table

Every model, the dense one first, runs in a process of its own per number of cores, under JAX's profiler. What a second
core does not halve stands out. Kinds are the compiler's names without numbers: "ynn_fusion" holds the products of
matrices. CPU only; Linux, since processes are pinned.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.command import command_line, listed
from benchmarks.results import table

MODEL, BATCH, RUNS = "deit_small_patch16_224", 16, 8


def measure(method: str, options: dict[str, Any]) -> dict[str, Any]:
    """Milliseconds and operations per forward pass and kind ("ms", "calls"), and by the clock ("wall")."""
    import time

    import jax
    import numpy as np

    import slimvit_jax as slim

    model = slim.create_model(MODEL, method=None if method == "dense" else method, **options)
    images = np.random.default_rng(0).normal(size=(BATCH, *model.img_size, 3)).astype(np.float32)
    variables = jax.jit(model.init)(jax.random.key(0), images[:1])
    forward = jax.jit(model.apply).lower(variables, images).compile()
    for _ in range(3):
        forward(variables, images).block_until_ready()
    ms: collections.Counter[str] = collections.Counter()
    calls: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            began = time.perf_counter()
            for _ in range(RUNS):
                forward(variables, images).block_until_ready()
            wall = (time.perf_counter() - began) / RUNS
        (file,) = Path(folder).rglob("*.xplane.pb")
        for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
            for event in (event for line in plane.lines for event in line.events):
                name = dict(event.stats).get("hlo_op")
                if name is not None:
                    kind = str(name).split(".")[0]
                    ms[kind] += event.duration_ns / 1e6 / RUNS
                    calls[kind] += 1 / RUNS
    return {"wall": 1e3 * wall, "ms": dict(ms.most_common()), "calls": dict(calls)}


def tables(result: dict[str, Any], least: float = 0.5) -> str:
    """Markdown, one table per model: the kinds that take at least so many ms on one core, the costliest first."""
    text = []
    for method in dict.fromkeys(row["method"] for row in result["rows"]):
        by_cores = {row["cores"]: row for row in result["rows"] if row["method"] == method}
        one, *more = (by_cores[cores] for cores in sorted(by_cores))
        heads = ["kind", "operations", "ms, 1 core", *(f"ms, {row['cores']} cores" for row in more)]
        cells = [["all, by the clock", "", f"{one['wall']:.1f}", *(f"{row['wall']:.1f}" for row in more)]]
        for kind, ms in one["ms"].items():
            if ms >= least:
                others = [f"{row['ms'].get(kind, 0.0):.1f}" for row in more]
                cells.append([kind, f"{one['calls'][kind]:.0f}", f"{ms:.1f}", *others])
        text.append(f"{method}, batch {BATCH}\n\n{table(heads, cells)}\n")
    return "\n".join(text)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile", allow_abbrev=False)
    add = parser.add_argument
    add("--methods", type=listed(str), default=["life_regression"])
    add("--cores", type=listed(int), default=[1, 2], metavar="N,...")
    add("--json", type=Path, required=True, metavar="FILE")
    add("--table", action="store_true", help="print what the file has; measure nothing")
    add("--one", default="", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Runs the command."""
    args = parse(argv)
    if args.one:
        print(json.dumps(measure(args.one, {})))
        return 0
    if args.table:
        print(tables(json.loads(args.json.read_text())), end="")
        return 0
    from slimvit_jax.files import write_text
    from slimvit_jax.inference.timing import describe_machine

    rows, free = [], sorted(os.sched_getaffinity(0))
    for method in ["dense", *args.methods]:
        for cores in args.cores:
            os.sched_setaffinity(0, free[:cores])
            command = [sys.executable, "-m", "benchmarks.profile", f"--one={method}", f"--json={args.json}"]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            rows.append({"method": method, "cores": cores, **json.loads(done.stdout.splitlines()[-1])})
            print(f"{method}, {cores} cores: {rows[-1]['wall']:.1f} ms", flush=True)
    result = {
        "command": command_line("profile"),
        "model": MODEL,
        "batch": BATCH,
        "machine": describe_machine(),
        "rows": rows,
    }
    write_text(args.json, json.dumps(result, indent=1) + "\n")
    print(tables(result), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
