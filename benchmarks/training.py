"""What the training loop costs beside the compiled step.

    python -m benchmarks.training --output results/cpu_training.json            about five minutes on two cores
    python -m benchmarks.training --models fashion_mnist_49 --rounds 3 --skip start

Three numbers for each model:

* outside: the share of a step's time that is not the compiled step. The training loop as it is (its own data,
  prefetch, metrics, log lines, TensorBoard) takes turns with the compiled step alone on a batch that lies on the
  device; the share is 1 - alone / loop of neighbours, the median over the turns. Beside it the CPU time of the main
  thread per step, which other work on the machine disturbs least: what the loop has more than the step alone is
  Python's work between steps.
* start: seconds from starting the process to the end of the first step, of a run that is new and has no compiled
  programs, and of the same command after a SIGKILL; how much of it compiling took, or reading compiled programs from
  the cache; and how many programs were compiled.
* checkpoint: how long training waits for one to be started, and what it adds to the time of the steps around it in all,
  being written while they compute on the same cores: segments of the loop with one save take turns with segments
  without.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.command import command_line, in_one_line, listed
from slimvit_jax.huge_pages import restart_with_huge_pages

ROOT = Path(__file__).resolve().parent.parent

#: Training at these sizes, by name: a config, and what to change in it. Nothing has to be downloaded: Fashion-MNIST is
#: Debian's package dataset-fashion-mnist, and DeiT-S sees the embedded digits, enlarged to 224 pixels.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "fashion_mnist_49": ("fashion_mnist_49", {"schedule": ("dense",)}),
    "deit_small": (
        "digits",
        {
            "schedule": ("dense",),
            "model.name": "deit_small_patch16_224",
            "model.options": {"num_classes": 10},
            "data.batch_size": 16,
        },
    ),
}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--models", type=listed(str), default=list(MODELS), metavar="NAME,...", help=f"of {', '.join(MODELS)}")
    add("--rounds", type=int, default=5, metavar="N", help="turns of the loop and of the step alone")
    add("--segment", type=float, default=4.0, metavar="S", help="seconds of a turn, about")
    add("--saves", type=int, default=3, metavar="N", help="turns with a checkpoint")
    add("--skip", type=listed(str), default=[], metavar="NAME,...", help="of outside, start, checkpoint")
    add("--output", metavar="FILE", help="write everything there, as JSON")
    args = parser.parse_args(argv)
    for name in args.models:
        if name not in MODELS:
            parser.error(f"no model {name!r}; choices: {', '.join(MODELS)}")
    if min(args.rounds, args.saves) < 1:
        parser.error("--rounds and --saves must be at least 1")
    return args


def config_of(name: str) -> Any:
    """The resolved config of a model of the list, with nothing in it that happens between steps."""
    from ml_collections import ConfigDict

    from slimvit_jax.training import load_config, validate

    file, changes = MODELS[name]
    config = load_config(ROOT / "configs" / f"{file}.py")
    for field, value in changes.items():
        *groups, last = field.split(".")
        holder = config
        for group in groups:
            holder = holder[group]
        holder[last] = ConfigDict(value) if isinstance(value, dict) else value
    config.eval.every_epochs = 0.0
    config.report.enabled = False
    config.checkpoint.every_steps = 10**9
    config.mesh.cpu_devices = 0
    return validate(config)


class Loop:
    """The training loop of a config's first stage, and its compiled step alone, as samplers for `interleave`."""

    def __init__(self, config: Any, folder: Path) -> None:
        import jax

        from slimvit_jax import data
        from slimvit_jax.training import build, devices
        from slimvit_jax.training.checkpoint import Checkpoints
        from slimvit_jax.training.logs import Logs
        from slimvit_jax.training.loop import Interrupt, Run, StageRun

        blocked: list[float] = []

        class Timed(Checkpoints):
            """Notes how long training waits in `save`."""

            def save(self, *arguments: Any, **options: Any) -> bool:
                began = time.perf_counter()
                saved = super().save(*arguments, **options)
                blocked.append(time.perf_counter() - began)
                return saved

        self.blocked = blocked
        devices.start_devices(config.mesh, config.cache_dir)
        mesh = devices.make_mesh(config.mesh.fsdp)
        source = build.build_source(config, config.data.train_split)
        folder.mkdir(parents=True, exist_ok=True)
        logs = Logs(folder, config.log.tensorboard)
        logs.console.quiet = True
        self.checkpoints = Timed(folder / "checkpoints", config.checkpoint.keep, logs.event)
        self.run = Run(config, folder, mesh, logs, self.checkpoints, Interrupt(), source, source)
        self.stage = build.build_stage(config, config.schedule[0], 10**6, mesh)
        self._stage_run = StageRun
        variables = build.init_variables(self.stage.model, 0)
        abstract = jax.eval_shape(lambda: self.stage.state(variables, None))
        self.state = self.stage.state(variables, None)
        self.bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(self.state))
        iterator = build.train_data(config, self.stage.config, 0, source)
        self.batches = data.prefetch_to_device(iterator, devices.batch_sharding(mesh))
        self.compiled = StageRun(self.run, self.stage, 0).compile(abstract)
        self.batch = next(self.batches)
        self.done = 0
        self.main_thread: dict[str, list[float]] = {"loop": [], "alone": []}  # CPU seconds per step

    def loop(self, repeats: int) -> tuple[float, float]:
        """So many steps of the loop; (elapsed, CPU) seconds per step."""
        import jax

        stage = dataclasses.replace(self.stage, steps=self.done + repeats)
        run = self._stage_run(self.run, stage, 0)
        wall, cpu, thread = time.perf_counter(), time.process_time(), time.thread_time()
        self.state = run.steps(self.compiled, self.state, self.batches, self.done)
        jax.block_until_ready(self.state)
        self.main_thread["loop"].append((time.thread_time() - thread) / repeats)
        self.done += repeats
        return (time.perf_counter() - wall) / repeats, (time.process_time() - cpu) / repeats

    def alone(self, repeats: int) -> tuple[float, float]:
        """So many compiled steps on one batch, back to back."""
        import jax

        wall, cpu, thread = time.perf_counter(), time.process_time(), time.thread_time()
        for _ in range(repeats):
            self.state, metrics = self.compiled(self.state, self.batch)
        jax.block_until_ready((self.state, metrics))
        self.main_thread["alone"].append((time.thread_time() - thread) / repeats)
        return (time.perf_counter() - wall) / repeats, (time.process_time() - cpu) / repeats

    def segment(self, steps: int, save: bool) -> float:
        """Seconds of so many steps of the loop, with one checkpoint after the second of them or without."""
        self.run.config.checkpoint.every_steps = self.done + 2 if save else 10**9
        seconds = self.loop(steps)[0] * steps
        self.run.config.checkpoint.every_steps = 10**9
        return seconds

    def close(self) -> None:
        self.batches.close()
        self.checkpoints.close()
        self.run.logs.close()


def outside(loop: Loop, args: argparse.Namespace) -> dict[str, Any]:
    """The share of the loop's time outside the compiled step."""
    from slimvit_jax.inference.timing import interleave

    timings = interleave({"loop": loop.loop, "alone": loop.alone}, args.rounds, args.segment)
    share = lambda a, b: statistics.median(1 - alone / loop for loop, alone in zip(a, b, strict=True))
    return {
        "step_seconds": timings["alone"].median,
        "loop_seconds": timings["loop"].median,
        "outside_share": share(timings["loop"].wall, timings["alone"].wall),
        "outside_share_of_cpu": share(timings["loop"].cpu, timings["alone"].cpu),
        "main_thread_seconds": {name: statistics.median(seconds) for name, seconds in loop.main_thread.items()},
        "samples": {name: dataclasses.asdict(timing) for name, timing in timings.items()},
    }


def checkpoint(loop: Loop, args: argparse.Namespace, step: float) -> dict[str, Any]:
    """What a checkpoint adds, over segments long enough for it to be written meanwhile."""
    steps = max(4, round(args.segment / step))
    seconds: dict[bool, list[float]] = {True: [], False: []}
    loop.segment(steps, True)  # compiles the checksum
    loop.blocked.clear()
    for turn in range(args.saves):
        for save in (True, False) if turn % 2 == 0 else (False, True):
            loop.checkpoints.wait()
            seconds[save].append(loop.segment(steps, save))
    plain = statistics.median(seconds[False])
    added = statistics.median(seconds[True]) - plain
    return {
        "bytes": loop.bytes,
        "steps": steps,
        "blocked_seconds": statistics.median(loop.blocked),
        "blocked_steps": statistics.median(loop.blocked) * steps / plain,
        "added_seconds": added,
        "added_steps": added * steps / plain,
        "samples": {"with": seconds[True], "without": seconds[False]},
    }


def first_step(arguments: list[str], workdir: Path, cache: Path) -> dict[str, Any]:
    """Starts train.py, waits for its first step and a checkpoint, and kills it."""
    log, errors = workdir / "metrics.jsonl", workdir.with_suffix(".err")
    with open(errors, "w") as stream:
        began = time.time()
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "train.py"), *arguments, f"--workdir={workdir}", f"--config.cache_dir={cache}"],
            stdout=subprocess.DEVNULL,
            stderr=stream,
            env={**os.environ, "JAX_LOG_COMPILES": "1"},
        )
        saved = lambda: any(entry.name.isdigit() for entry in (workdir / "checkpoints").glob("*"))
        fresh = lambda: [entry for entry in read_lines(log) if entry["time"] > began]
        while process.poll() is None and not (saved() and any(entry["kind"] == "train" for entry in fresh())):
            time.sleep(0.05)
        process.kill()
        process.wait()
    said, entries = errors.read_text(), fresh()
    if not any(entry["kind"] == "train" for entry in entries):
        raise SystemExit(f"train.py ended before its first step: {said.strip().splitlines()[-1]}")
    compiled = next(entry for entry in entries if entry.get("name") == "compiled")
    return {
        "resumed": any(entry.get("name") == "resume" for entry in entries),
        "seconds": next(entry["time"] for entry in entries if entry["kind"] == "train") - began,
        "step_compile_seconds": compiled["seconds"],
        "from_cache": said.count("Persistent compilation cache hit"),
        "compiled": said.count("Finished XLA compilation") - said.count("Persistent compilation cache hit"),
    }


def read_lines(log: Path) -> list[dict[str, Any]]:
    """The whole lines of a metrics.jsonl that may be being written."""
    text = log.read_text() if log.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def start(config: Any, folder: Path) -> list[dict[str, Any]]:
    """A first start with an empty cache of compiled programs, then twice the same command after a SIGKILL."""
    file = folder / "benchmark_config.py"
    config.checkpoint.every_steps, config.log.every_steps = 1, 1
    file.write_text(
        "import json\nfrom slimvit_jax.training.config import from_dict\n\n"
        f"def get_config():\n    return from_dict(json.loads({json.dumps(config.to_dict())!r}))\n"
    )
    return [first_step([f"--config={file}"], folder / "run", folder / "cache") for _ in range(3)]


def measure(name: str, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All numbers of one model."""
    row: dict[str, Any] = {"model": name}
    if "start" not in args.skip:
        row["start"] = start(config_of(name), folder)
    if {"outside", "checkpoint"} - set(args.skip):
        loop = Loop(config_of(name), folder / "loop")
        row["batch"] = loop.run.config.data.batch_size
        step = loop.alone(2)[0]
        if "outside" not in args.skip:
            row |= outside(loop, args)
            step = row["step_seconds"]
        if "checkpoint" not in args.skip:
            row["checkpoint"] = checkpoint(loop, args, step)
        loop.close()
    return row


def print_rows(rows: list[dict[str, Any]], machine: dict[str, Any]) -> None:
    """One table, a row a number."""
    from slimvit_jax.reports import tables

    title = f"{machine['processor']}, {machine['cores']} cores; {', '.join(machine['devices'])}"
    table = tables.table("model", "", "value", title=title)
    for row in rows:
        model = row["model"]
        if "step_seconds" in row:
            table.add_row(model, f"compiled step, batch {row['batch']}", f"{1000 * row['step_seconds']:.1f} ms")
            table.add_row(model, "outside of it, elapsed time", f"{row['outside_share']:.1%}")
            table.add_row(model, "outside of it, CPU time", f"{row['outside_share_of_cpu']:.1%}")
            for name, seconds in row["main_thread_seconds"].items():
                table.add_row(model, f"main thread's CPU time a step, {name}", f"{1000 * seconds:.1f} ms")
        for run in row.get("start", ()):
            what = "resumed" if run["resumed"] else "new run"
            table.add_row(model, f"{what}: process start to first step", f"{run['seconds']:.1f} s")
            table.add_row(model, f"{what}: of it, making the step's program", f"{run['step_compile_seconds']:.1f} s")
            table.add_row(model, f"{what}: programs compiled / from cache", f"{run['compiled']} / {run['from_cache']}")
        if "checkpoint" in row:
            saved = row["checkpoint"]
            table.add_row(model, "checkpoint", f"{saved['bytes'] / 2**20:.0f} MiB")
            for kind, what in (("blocked", "training waits for it"), ("added", "it adds in all")):
                values = f"{saved[f'{kind}_seconds']:.2f} s = {saved[f'{kind}_steps']:.2f} steps"
                table.add_row(model, what, values)
    tables.show(table)


@in_one_line
def main(argv: list[str] | None = None) -> int:
    """Measures, prints the table, writes the JSON; exit status 2 for bad input."""
    args = parse(argv)
    from slimvit_jax.files import write_json
    from slimvit_jax.inference.timing import describe_machine

    result: dict[str, Any] = {"command": command_line("training")}
    result |= {"machine": describe_machine(), "results": []}
    for name in args.models:
        with tempfile.TemporaryDirectory() as folder:
            result["results"].append(measure(name, args, Path(folder)))
    print_rows(result["results"], result["machine"])
    if args.output:
        write_json(args.output, result)
    return 0


if __name__ == "__main__":
    restart_with_huge_pages()  # as train.py does: the step alone and the loop run as they do there
    sys.exit(main())
