"""Trains every method from one dense model under equal conditions and writes what came out, run by run.

    python -m benchmarks.study --config=configs/study_fashion.py --workdir=results/study_micro
    python -m benchmarks.study ... --list                     what there is to do
    python -m benchmarks.study ... --only='main/.*/0.7/.*'    a part of it
    python -m benchmarks.study ... --hours=1.5                no new run after so long

The same command goes on where it stopped, also within a run. WORKDIR has study.json (config, machine, the dense
model, and those trained again where its weights were lost), dense.safetensors, life.safetensors (life regression at
0.7, seed 0) and results.jsonl: a line per run and question, rewritten as a whole after each run. `python -m
benchmarks.report` makes tables and pictures of it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import results
from benchmarks.command import command_line, in_one_line, write_rows
from slimvit_jax import training
from slimvit_jax.errors import SlimError
from slimvit_jax.files import read_json, write_json
from slimvit_jax.huge_pages import restart_with_huge_pages
from slimvit_jax.training import fields

LIFE = ("main", "life_regression", 0.7, 0)  # the cell whose weights are kept


def parse(argv: list[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """The command line; what it does not know are overrides of config fields."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study", allow_abbrev=False)
    add = parser.add_argument
    add("--config", required=True, metavar="FILE", help="configs/study_fashion.py, or a file like it")
    add("--workdir", required=True, metavar="DIR")
    add("--seeds", default="0,1,2", metavar="N,...")
    add("--only", default="", metavar="REGEX", help="only cells whose whole name it matches")
    add("--hours", type=float, default=0.0, metavar="H", help="start no cell later than this; 0: no limit")
    add("--full", action="store_true", help="all seeds for all questions, all methods at all rates: 3 x as long")
    add("--list", action="store_true", help="print the cells and whether they are done; train nothing")
    return parser.parse_known_args(argv)


class Study:
    """A study's folder.

    Args:
      config: validated; its stages "dense", "predictor", "backbone" and "finetune" are what cells run.
      path: the folder, made if missing.
      say: takes lines for the user.

    Raises:
      SlimError: the folder belongs to a study of another config; the differing fields are named.
    """

    def __init__(self, config: Any, path: str | Path, say: Callable[[str], None] = print) -> None:
        self.config, self.path, self.say = config, Path(path), say
        self._results = self.path / "results.jsonl"
        self.rows: list[dict[str, Any]] = []
        if (self.path / "study.json").exists():
            found = results.Study(self.path)
            self.rows = found.rows
            newer = fields.defaults(training.config.reference(config))  # what fields have that the study does not know
            defaults = _plain(newer)
            different = training.config.differences(defaults | found.facts["config"], _plain(config.to_dict()))
            if different:
                raise SlimError(f"study {str(path)!r} has another config: {'; '.join(different)}")

    @property
    def done(self) -> set[str]:
        """Names of finished cells."""
        return {row["cell"] for row in self.rows}

    def dense_weights(self) -> str:
        """The path of the dense weights, trained first where they are missing."""
        from benchmarks.study_cells import Cell
        from slimvit_jax import flops, save
        from slimvit_jax.inference.evaluate import count_parameters
        from slimvit_jax.inference.timing import describe_machine

        weights = self.path / "dense.safetensors"
        if weights.exists() and (self.path / "study.json").exists():
            return str(weights)
        self.say("dense model: " + str(self.config.stages.dense.epochs) + " epochs")
        config = Cell("dense", "dense", "dense", {}, 1.0, -1, ("dense",)).config(self.config, "")
        config.init = self.config.init
        result = training.run(config, self.path / "runs" / "dense")
        save(result.dense_model, result.variables["dense"], weights, overwrite=True)
        facts = result.metrics["dense"] | {"epochs": config.stages.dense.epochs, "seconds": result.seconds["dense"]}
        facts |= {"flops": flops(result.dense_model).total, "parameters": count_parameters(result.dense_model)}
        about = {"command": command_line("study", folders=False), "date": _now()}
        about |= {"machine": describe_machine(), "scale": self.config.name.removeprefix("study_")}
        about |= {"config": _plain(self.config.to_dict()), "dense": facts}
        if self.rows:  # weights were lost: they are not the same to the bit where threads add up in another order
            again = about
            about = read_json(self.path / "study.json")
            about.setdefault("dense_again", []).append({k: v for k, v in again.items() if k != "config"})
        write_json(self.path / "study.json", about)
        shutil.rmtree(self.path / "runs" / "dense")
        return str(weights)

    def run_cell(self, cell: Any) -> list[dict[str, Any]]:
        """Trains and evaluates one cell and adds its rows; a loss that is not finite is a result too."""
        import jax

        from slimvit_jax import save
        from slimvit_jax.inference.timing import describe_machine

        folder = self.path / "runs" / re.sub(r"[^A-Za-z0-9.]+", "_", cell.name)
        config = cell.config(self.config, self.dense_weights())
        row = {"cell": cell.name, "group": cell.group, "variant": cell.variant, "method": cell.method}
        row |= {"options": dict(cell.options), "train_rate": cell.train_rate, "seed": cell.seed}
        row |= {"epochs": sum(config.stages[name].epochs for name in cell.schedule)}
        about = read_json(self.path / "study.json")
        row["dense_accuracy"] = [about, *about.get("dense_again", [])][-1]["dense"]["accuracy"]  # what it starts from
        try:
            result = training.run(config, folder) if cell.schedule else untuned(config)
        except training.NotFinite as error:
            row |= {"error": str(error), "evals": []}
        else:
            seconds = round(sum(result.seconds.values()), 1)
            row |= {"seconds": seconds, "evals": evaluations(cell, config, result)}
            if (cell.group, cell.method, cell.train_rate, cell.seed) == LIFE:
                save(result.model, result.variables[cell.schedule[-1]], self.path / "life.safetensors", overwrite=True)
        # After training, which sets the number of devices; a study may go on on another machine.
        row |= {"processor": describe_machine()["processor"], "date": _now()}
        rows = [row, *({**row, "group": group, "variant": variant} for group, variant in cell.also)]
        self.rows += rows
        write_rows(self._results, self.rows)
        shutil.rmtree(folder, ignore_errors=not cell.schedule)
        jax.clear_caches()  # a cell's programs serve no other
        return rows


def untuned(config: Any) -> Any:
    """What a run of no stages leaves: the method under the dense model's weights."""
    from types import SimpleNamespace

    from slimvit_jax.training import build

    model, dense_model = build.build_model(config), build.build_model(config, slimmed=False)
    variables = {"dense": build.start_variables(config, model)}
    return SimpleNamespace(model=model, dense_model=dense_model, variables=variables, seconds={})


def evaluations(cell: Any, config: Any, result: Any) -> list[dict[str, Any]]:
    """Accuracy on the whole evaluation split at every keep rate that the cell asks for.

    Where the config lists keep rates, life regression's weights serve them all, and its lives are compared with random
    ones under the same weights. `hits` says of every image whether it was right, as the bits of a hexadecimal number,
    so that runs can be compared image by image.
    """
    from benchmarks.study_cells import LOCATIONS, matched_options, reference_flops
    from slimvit_jax import create_model, flops
    from slimvit_jax.inference.evaluate import Inference, evaluate, random_lives
    from slimvit_jax.training import build

    variables = result.variables[cell.schedule[-1] if cell.schedule else "dense"]
    options = config.model.options.to_dict()
    source = build.build_source(config, config.data.eval_split)
    found = []

    def add(run: Any, rate: float, lives: str | None, order: Any = None) -> None:
        outcome = evaluate(run, batches=build.eval_data(config, source), lives=order)
        facts = {"accuracy": outcome.top1, "top5": outcome.top5, "loss": outcome.loss, "examples": outcome.count}
        facts["hits"] = np.packbits(outcome.hits).tobytes().hex()
        cost = {"flops": flops(run.model).total, "target_flops": reference_flops(options, rate, config.model.name)}
        found.append({"keep_rate": rate, "lives": lives, **facts, **cost})

    if cell.eval_rates or not config.eval.keep_rates:
        for rate in (cell.train_rate, *cell.eval_rates):
            if cell.method == "dense" or rate == cell.train_rate:
                model = result.dense_model if cell.method == "dense" else result.model
            else:
                fixed = {k: v for k, v in cell.options.items() if k != "keep_rate"}
                matched = matched_options(options, cell.method, rate, config.model.name, **fixed)
                model = create_model(config.model.name, method=cell.method, **options, **matched)
            add(Inference(model, variables), rate, None)
    elif cell.method == "life_regression":
        for rate in config.eval.keep_rates if "budgets" not in cell.options else [cell.train_rate]:
            deployed = {**cell.options, "keep_rate": rate, "locations": LOCATIONS}
            model = create_model(config.model.name, method=cell.method, **options, **deployed)
            run = Inference(model, variables)
            add(run, rate, "learned")
            if cell.group == "main" or rate == cell.train_rate:
                add(run, rate, "random", random_lives(model.geometry.num_patches, cell.seed))
    elif cell.method == "dense":
        add(Inference(result.dense_model, variables), 1.0, None)
    else:
        add(Inference(result.model, variables), cell.train_rate, None)
    return found


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """Flat, as JSON gives it back, without the folders of this machine."""
    flat = json.loads(json.dumps(training.config.flatten(config)))
    return {key: Path(value).name if key in ("data.data_dir", "init.path") else value for key, value in flat.items()}


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


@in_one_line
def main(argv: list[str] | None = None) -> int:
    """Runs the command line; exit status 2 for bad input, 143 or 130 where it was asked to stop."""
    args, rest = parse(argv)
    try:
        return run_study(args, training.load_config(args.config, training.parse_overrides(rest)))
    except training.Stopped as stop:
        print(f"study: {stop}", file=sys.stderr)
        return 128 + (stop.signal or 15)


def run_study(args: argparse.Namespace, config: Any) -> int:
    """Every cell that is not done, one after the other; prints what each found and how long the rest may take."""
    if config.name == "study_photos":
        from benchmarks.photo_cells import all_cells as cells_of
    else:
        from benchmarks.study_cells import all_cells as cells_of
    try:
        seeds = [int(part) for part in args.seeds.split(",")]
        pattern = re.compile(args.only or ".*")
    except (ValueError, re.error) as error:
        raise SlimError(f"--seeds={args.seeds} or --only={args.only}: {error}") from error
    study = Study(config, args.workdir)
    wanted = [cell for cell in cells_of(config, seeds, args.full) if pattern.fullmatch(cell.name)]
    if not wanted:
        raise SlimError(f"--only={args.only!r} matches no cell; see them with --list")
    todo = [cell for cell in wanted if cell.name not in study.done]
    if args.list:
        for cell in wanted:
            print(f"{'done ' if cell.name in study.done else '     '} {cell.name}  {json.dumps(dict(cell.options))}")
        print(f"{len(wanted) - len(todo)} of {len(wanted)} done")
        return 0
    study.path.mkdir(parents=True, exist_ok=True)
    study.dense_weights()
    began = time.perf_counter()
    for number, cell in enumerate(todo):
        spent = time.perf_counter() - began
        if args.hours and spent > 3600 * args.hours:
            print(f"{args.hours:g} hours are over; {len(todo) - number} cells are left, the same command goes on")
            break
        left = f", about {spent / number * (len(todo) - number) / 60:.0f} min left" if number else ""
        print(f"== {cell.name} ({number + 1} of {len(todo)}{left})", flush=True)
        for evaluation in study.run_cell(cell)[0]["evals"]:
            lives = f" {evaluation['lives']} lives" if evaluation["lives"] else ""
            cost = evaluation["flops"] / evaluation["target_flops"]
            text = f"   at {evaluation['keep_rate']:g}{lives}: {evaluation['accuracy']:.4f}, {cost:.3f} of the cost"
            print(text, flush=True)
    print(f"{sum(cell.name in study.done for cell in wanted)} of {len(wanted)} runs are done: {study.path}")
    return 0


if __name__ == "__main__":
    restart_with_huge_pages()
    sys.exit(main())
