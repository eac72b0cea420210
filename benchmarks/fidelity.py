"""How near a slimmed model stays to the dense one, untrained: features, and accuracy where the weights have a head.

    python -m benchmarks.fidelity --config=configs/study_photos.py --out=results/fidelity/photos_val.jsonl \
        --split='val[:1000]' [--only=REGEX] [--list] [--speed] --config.data.data_dir=IMAGES --config.init.path=FILE

The config says which model, weights (`init`) and data; the rest of it does not matter. Every method runs at about the
multiply-adds of life regression at 0.7 and at 0.5. A row per model has the cosine between the class token (without
one, the mean patch) of the slimmed and of the dense model after the last norm, the same one layer earlier, before any
norm, and the share of right answers where the head came with the weights. Rows are added as they come; what is there
is not done again. --speed times the models of the main comparison in turns instead, in batches of 1 and 16.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

import slimvit_jax as slim
from benchmarks import coverage_orders
from benchmarks.command import command_line, in_one_line, read_rows, write_rows
from benchmarks.photo_cells import COVERAGE, EVERY
from benchmarks.results import table
from benchmarks.study_cells import LOCATIONS, REFERENCE, matched_options
from slimvit_jax import training
from slimvit_jax.errors import SlimError
from slimvit_jax.huge_pages import restart_with_huge_pages
from slimvit_jax.inference.evaluate import measure_speed
from slimvit_jax.inference.timing import describe_machine
from slimvit_jax.training import build

RATES = (0.7, 0.5)
#: The same share in every layer.
FROM_THE_FIRST = COVERAGE | {"locations": tuple(range(1, 12))}
#: Experiments on the order, by their name among the methods.
ORDERS = {"remade": coverage_orders.Remade, "redundant first": coverage_orders.RedundantFirst}
TIMED = ("dense", "life regression, learned", "coverage, squeezed", "ToMe")


@dataclasses.dataclass(frozen=True)
class Cell:
    """One model to measure.

    Attributes:
      group, rate, variant: its name.
      method, options: of `create_model`; method None is the dense model, one of ORDERS an experiment.
    """

    group: str
    rate: float
    variant: str
    method: str | None
    options: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Unique among the cells."""
        return f"{self.group}/{self.rate:g}/{self.variant}"


def all_cells(name: str, model: Mapping[str, Any]) -> Iterator[Cell]:
    """Every cell, what matters most first."""
    matched = functools.partial(matched_options, model)

    def merges(life: Mapping[str, Any]) -> tuple[int, ...]:
        """What ToMe merges in every layer to have as many tokens as life regression, as far as it can."""
        counts = slim.create_model(name, method=REFERENCE, **model, **life).slim.plan.attention
        return tuple(min(a - b, a // 2) for a, b in zip(counts, (*counts[1:], counts[-1]), strict=True))

    yield Cell("compare", 1.0, "dense", None, {})
    for rate in RATES:
        life = lambda rate=rate, **fixed: {"locations": LOCATIONS, **matched(REFERENCE, rate, name, **fixed)}
        cell = functools.partial(Cell, "compare", rate)
        yield cell("coverage, squeezed", REFERENCE, life(**COVERAGE))
        yield cell("ToMe", "tome", matched("tome", rate, name))
        yield cell("coverage, squeezed in every layer", REFERENCE, life(**EVERY))
        yield cell("random, squeezed", "random", matched("random", rate, name, squeeze="mean"))
        yield cell("coverage, dropped", REFERENCE, life(lives="coverage"))
        for order, called in (("greedy", "one by one"), ("parallel", "in two passes")):
            yield cell(f"coverage {called}, squeezed", REFERENCE, life(**COVERAGE, coverage_order=order))
        yield cell("coverage, squeezed by TPS", REFERENCE, life(lives="coverage", squeeze=True))
        yield cell("ToMe in the same three layers", "tome", {"r": merges(life())})
        yield cell("EViT", "evit", matched("evit", rate, name))
        yield cell("EViT, squeezed", "evit", matched("evit", rate, name, squeeze="mean"))
        yield cell("top-k", "topk", matched("topk", rate, name))
        yield cell("top-k, squeezed", "topk", matched("topk", rate, name, squeeze="mean"))
        yield cell("random", "random", matched("random", rate, name))
        yield cell("life regression, learned", REFERENCE, life())
        yield cell("life regression, learned, squeezed", REFERENCE, life(squeeze="mean"))

    for rate in RATES:
        life = lambda rate=rate, **fixed: {"locations": LOCATIONS, **matched(REFERENCE, rate, name, **fixed)}
        cell = functools.partial(Cell, "why", rate)
        three, every, first = life(**COVERAGE), life(**EVERY), life(**FROM_THE_FIRST)
        yield cell("three drops, ordered anew at each", "remade", three)
        yield cell("from layer 3 on, ordered anew in each", "remade", every)
        yield cell("from layer 1 on, ordered once", REFERENCE, first)
        yield cell("from layer 1 on, ordered anew in each", "remade", first)
        yield cell("three drops, the most redundant first", "redundant first", three)
        yield cell("from layer 3 on, the most redundant first", "redundant first", every)
        yield cell("from layer 3 on, ToMe", "tome", {"r": merges(every)})


class Bench:
    """The dense model of a config and what its images give.

    Args:
      config: validated.
      split: of the images.
    """

    def __init__(self, config: Any, split: str) -> None:
        self.config, self.split = config, split
        self.options = config.model.options.to_dict()
        self.dense = build.build_model(config, slimmed=False)
        self.variables = build.start_variables(config, self.dense)
        self.source = build.build_source(config, split)
        self.has_head = self.dense.num_classes > 0 and "head" not in config.init.options.get("init_missing", ())
        self._reference: list[np.ndarray] | None = None

    def model(self, cell: Cell) -> tuple[Any, Any]:
        """(model, variables) of a cell; what a method learns is fresh."""
        if cell.method is None:
            return self.dense, self.variables
        method, options = cell.method, dict(cell.options)
        if cell.method in ORDERS:
            method, options = ORDERS[cell.method](**options), {}
        model = slim.create_model(self.config.model.name, method=method, **self.options, **options)
        model = build.prepared(self.config, model)
        image = np.zeros((1, *model.img_size, model.in_chans), np.float32)
        if "slim" not in jax.eval_shape(model.init, jax.random.key(0), image)["params"]:
            return model, self.variables
        return model, build.adopt(self.variables, build.init_variables(model, 0))

    def features(self, model: Any, variables: Any) -> list[np.ndarray]:
        """[(n, D) after the last norm, (n, D) one layer earlier, (n,) whether the answer was right]."""
        last, found = f"blocks_{model.geometry.depth - 1}", []
        token = lambda x: x[:, 0] if model.geometry.class_token else x[:, model.geometry.prefix_tokens :].mean(axis=1)

        def forward(variables: Any, images: Any) -> Any:
            seen = []

            def look(function: Any, args: Any, kwargs: Any, context: Any) -> Any:
                if context.method_name == "attend" and context.module.name == last:
                    seen.append(token(args[0].x))
                return function(*args, **kwargs)

            with nn.intercept_methods(look):
                logits, aux = model.apply(variables, images, return_aux=True)
            return token(aux.features), seen[0], logits.argmax(axis=-1)

        run = jax.jit(forward)
        for batch in build.eval_data(self.config, self.source):
            real = np.asarray(batch["mask"], bool)
            after, earlier, answer = (np.asarray(part)[real] for part in run(variables, batch["image"]))
            found.append((after, earlier, answer == np.asarray(batch["label"])[real]))
        return [np.concatenate(part) for part in zip(*found, strict=True)]

    def measure(self, cell: Cell) -> dict[str, Any]:
        """What is found of a cell."""
        if self._reference is None:
            self._reference = self.features(self.dense, self.variables)
        model, variables = self.model(cell)
        slimmed = self.features(model, variables) if cell.method else self._reference
        lost = [1 - cosine(mine, own) for mine, own in zip(slimmed[:2], self._reference[:2], strict=True)]
        row = {"flops": slim.flops(model).total, "images": len(lost[0])}
        row |= {"cosine": 1 - lost[0].mean(), "stderr": lost[0].std() / len(lost[0]) ** 0.5}
        row |= {"cosine_before": 1 - lost[1].mean(), "lost": [round(1e6 * value) for value in lost[0].tolist()]}
        return row | ({"accuracy": float(slimmed[2].mean())} if self.has_head else {})

    def speeds(self, cells: list[Cell], batch: int, rounds: int) -> Iterator[dict[str, Any]]:
        """A row per model, timed in turns with the dense one."""
        speeds = measure_speed({cell.variant: self.model(cell) for cell in cells}, batch, rounds=rounds)
        for cell in cells:
            times = speeds[cell.variant].seconds
            ratio = float(np.median(np.divide(speeds["dense"].seconds, times)))
            row = {"cell": f"speed/{batch}/{cell.rate:g}/{cell.variant}", "group": "speed", "rate": cell.rate}
            yield row | {"variant": cell.variant, "batch": batch, "speed_ratio": ratio, "wall": list(times)}


def tables(path: Path, group: str = "compare") -> str:
    """A group's rows as a table: each rate's models by their cosine, the difference from ToMe image by image.

    Raises:
      SlimError: the file cannot be read.
    """
    if not path.exists():
        raise SlimError(f"{path}: No such file or directory")
    found = read_rows(path)
    peers = {row["rate"]: np.asarray(row["lost"]) / 1e6 for row in found if row["variant"] == "ToMe"}
    shown = [row for row in found if row["group"] == group]
    rows = sorted(shown, key=lambda row: (-row["rate"], -row["cosine"]))
    scored = any("accuracy" in row for row in rows)
    cells = []
    for row in rows:
        gain = peers[row["rate"]] - np.asarray(row["lost"]) / 1e6 if row["rate"] in peers else None
        compared = "—" if gain is None else f"{gain.mean():+.4f} ± {gain.std() / len(gain) ** 0.5:.4f}"
        line = [row["variant"], f"{row['rate']:g}", f"{row['flops'] / 1e6:,.1f}", f"{row['cosine']:.4f}"]
        line += [compared, f"{row['cosine_before']:.4f}"]
        cells.append([*line, f"{100 * row['accuracy']:.2f}"] if scored else line)
    heads = ["method", "rate", "multiply-adds, M", "cosine", "minus ToMe", "one layer earlier"]
    return table([*heads, "top-1, %"] if scored else heads, cells)


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n,) of the rows of two (n, D) arrays, float64."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))


def parse(argv: list[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """The command line; what it does not know are overrides of config fields."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fidelity", allow_abbrev=False)
    add = parser.add_argument
    add("--config", required=True, metavar="FILE", help="configs/study_photos.py, or a file like it")
    add("--out", required=True, type=Path, metavar="FILE", help="a row per model is added to it")
    add("--split", default="", metavar="SPLIT", help="images, such as train[:100]; default: the config's eval split")
    add("--only", default=".*", metavar="REGEX", help="only cells whose whole name it matches")
    add("--speed", action="store_true", help="time the models in turns; no features")
    add("--rounds", type=int, default=9, metavar="N", help="of --speed")
    add("--list", action="store_true", help="print the cells and whether they are done; measure nothing")
    return parser.parse_known_args(argv)


def run(args: argparse.Namespace, config: Any) -> int:
    """Measures what is not done yet."""
    rows = read_rows(args.out)
    done, split = {row["cell"] for row in rows}, args.split or config.data.eval_split
    if any(row.get("split", split) != split for row in rows):
        raise SlimError(f"--split={split!r}: {args.out} has rows of another split; choose another file")
    options = config.model.options.to_dict()
    try:
        cells = [c for c in all_cells(config.model.name, options) if re.fullmatch(args.only, c.name)]
    except re.error as error:
        raise SlimError(f"--only={args.only}: {error}") from error
    if not cells:
        raise SlimError(f"--only={args.only!r} matches no cell; see them with --list")
    if args.list:
        print(*(f"{'done' if cell.name in done else 'to do':6} {cell.name}" for cell in cells), sep="\n")
        return 0
    bench = Bench(config, split)
    about = {"model": config.model.name, "command": command_line("fidelity", folders=False)}

    def keep(row: dict[str, Any]) -> None:
        machine = describe_machine()
        about_now = {**about, "processor": machine["processor"], "cores": machine["cores"], "date": machine["date"]}
        rows.append({**row, **about_now})
        write_rows(args.out, rows)

    if args.speed:
        for rate in RATES:
            timed = [cell for cell in cells if cell.rate == rate and cell.group == "compare" and cell.variant in TIMED]
            timed = [Cell("compare", rate, "dense", None, {}), *timed]
            for batch in (1, 16):
                if f"speed/{batch}/{rate:g}/dense" not in done:
                    for row in bench.speeds(timed, batch, args.rounds):
                        keep(row)
                        print(f"{row['cell']:60} {row['speed_ratio']:.3f} x dense", flush=True)
        return 0
    for cell in cells:
        if cell.name not in done:
            row = bench.measure(cell)
            facts = {"cell": cell.name, "group": cell.group, "rate": cell.rate, "variant": cell.variant}
            keep({**facts, "method": cell.method, "options": dict(cell.options), "split": split, **row})
            said = f"{row['cosine']:.4f} +- {row['stderr']:.4f}" + (
                f", {row['accuracy']:.2%}" if "accuracy" in row else ""
            )
            print(f"{cell.name:60} {row['flops'] / 1e9:.3f} G  {said}", flush=True)
    return 0


@in_one_line
def main(argv: list[str] | None = None) -> int:
    """Runs the command; exit status 2 for bad input."""
    args, rest = parse(argv)
    return run(args, training.load_config(args.config, training.parse_overrides(rest)))


if __name__ == "__main__":
    restart_with_huge_pages()
    sys.exit(main())
