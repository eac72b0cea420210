"""How fast the study's models are: every method at every keep rate, in turns with the dense model.

    python -m benchmarks.study_speed results/study_micro [--batch 64] [--rounds 9] [--groups main] [--rates 0.7 0.5]

Reads which models there are from the folder's results.jsonl and writes speed.json beside it, anew after each keep rate.
Weights are random: speed does not depend on them. What counts is the ratio to the dense model of the same rounds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.command import command_line, in_one_line
from benchmarks.results import Study
from slimvit_jax import SlimError, create_model, flops
from slimvit_jax.errors import unknown
from slimvit_jax.files import write_json
from slimvit_jax.inference.evaluate import measure_speed
from slimvit_jax.inference.timing import describe_machine
from slimvit_jax.training.build import init_variables


def models_at(study: Study, rate: float, groups: Sequence[str]) -> dict[str, Any]:
    """The dense model, and that of every variant at this keep rate; equal ones are one object."""
    name, options = study.config("model.name"), study.model_options()
    models = {"dense": create_model(name, **options)}
    made: dict[str, Any] = {}
    for row in [row for group in groups for row in study.of(group)]:
        if row["train_rate"] == rate and row["variant"] not in models:
            same = repr((row["method"], sorted(row["options"].items())))
            if same not in made:
                made[same] = create_model(name, method=row["method"], **options, **row["options"])
            models[row["variant"]] = made[same]
    return models


def measure(study: Study, rate: float, args: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of one keep rate."""
    models = models_at(study, rate, args.groups)
    names = {id(model): name for name, model in models.items()}  # one for all that are equal
    once = {name: (models[name], init_variables(models[name], 0)) for name in names.values()}
    speeds = measure_speed(once, args.batch, rounds=args.rounds)
    dense = speeds["dense"].seconds
    rows = []
    for name, model in models.items():
        speed = speeds[names[id(model)]]
        row = {"variant": name, "keep_rate": rate, "flops": flops(model).total, "wall": list(speed.seconds)}
        row["images_per_second"] = speed.images_per_second
        rows.append(row | {"speed_ratio": float(np.median(np.divide(dense, speed.seconds)))})
    return rows


@in_one_line
def main(argv: list[str] | None = None) -> int:
    """Measures and writes speed.json; exit status 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study_speed")
    parser.add_argument("folder", help="of a study")
    parser.add_argument("--batch", type=int, default=64, metavar="B")
    parser.add_argument("--rounds", type=int, default=9, metavar="N")
    parser.add_argument("--groups", nargs="+", default=["main", "untuned"], choices=("main", "untuned"))
    parser.add_argument("--rates", nargs="+", type=float, metavar="R", help="keep rates (default: all that there are)")
    args = parser.parse_args(argv)
    study = Study(args.folder)
    rates = sorted({rate for group in args.groups for rate in study.train_rates(group)} - {1.0}, reverse=True)
    if not rates:
        raise SlimError(f"{args.folder}: no finished run yet")
    for rate in args.rates or ():
        if rate not in rates:
            raise unknown("keep rate", f"{rate:g}", [f"{known:g}" for known in rates])
    command = command_line("study_speed", argv)
    result: dict[str, Any] = {"command": command, "machine": describe_machine(), "batch": args.batch, "rows": []}
    for rate in args.rates or rates:
        result["rows"] += measure(study, rate, args)
        write_json(study.path / "speed.json", result)
        for row in result["rows"]:
            if row["keep_rate"] == rate:
                print(f"{rate:g} {row['variant']:28} {row['speed_ratio']:.3f} x dense", flush=True)
    return 0


if __name__ == "__main__":
    from slimvit_jax.huge_pages import restart_with_huge_pages

    restart_with_huge_pages()
    sys.exit(main())
