"""How good counts that were searched for are: on images that no search saw, over several calibration sets.

    python -m benchmarks.budget --config=configs/study_photos.py --out=results/budget/photos.jsonl --speedup 1.5 \
        --methods tome,life_regression --config.data.data_dir=IMAGES --config.init.path=FILE

The cost of a layer is measured once. Then every method's counts are searched on every calibration set, drawn by its
seed, as `slim.fit_budget` does: from the schedule made by hand that is best on the set. What was found is looked at on
held-out images, beside schedules made by hand of the same predicted cost. Last, the models found are timed in turns
with the dense one and those made by hand. Everything that was measured is added to the file as it comes, and what is
there is not done again: --minutes ends a run early, the same command goes on.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.command import command_line, in_one_line, listed, read_rows, write_rows
from benchmarks.results import NAMES, table
from slimvit_jax import training
from slimvit_jax.budget.bench import Bench
from slimvit_jax.budget.cost import Clock, CostModel, measure
from slimvit_jax.budget.fit import LIVES, SCREENED, shapes_of
from slimvit_jax.budget.given import families_of
from slimvit_jax.budget.layerwise import Layerwise, Programs
from slimvit_jax.budget.race import Race
from slimvit_jax.huge_pages import restart_with_huge_pages
from slimvit_jax.inference.timing import describe_machine
from slimvit_jax.training import build

#: Family, shape and counts.
Schedule = tuple[str, str, tuple[int, ...]]


class Enough(Exception):
    """The minutes are over."""


class Ledger:
    """The rows of a file, and how a run is ended early.

    Args:
      path: JSON lines.
      minutes: after so many nothing new is begun.
    """

    def __init__(self, path: Path, minutes: float) -> None:
        self.path, self._end = path, time.monotonic() + 60 * minutes
        self.rows = read_rows(path)

    def get(self, what: str, make: Any) -> dict[str, Any]:
        """The row called `what`; made, a dict, and written where there is none yet."""
        found = next((row for row in self.rows if row["what"] == what), None)
        if found is None:
            if time.monotonic() > self._end:
                raise Enough
            found = {"what": what, **make()}
            self.rows.append(found)
            write_rows(self.path, self.rows)
            print(what, {k: v for k, v in found.items() if k not in ("what", "lost", "machine")}, flush=True)
        return found


class Study:
    """A config's dense model, and benches on parts of its images."""

    def __init__(self, config: Any, args: argparse.Namespace, ledger: Ledger) -> None:
        self.config, self.args, self.ledger, self.programs = config, args, ledger, Programs()
        self.model = build.build_model(config, slimmed=False)
        self.variables = build.start_variables(config, self.model)
        self.families = families_of(self.model, args.methods)
        self.clock = Clock(args.batch_size, args.rounds)
        self.cost = self._cost()
        self.limit = self.cost.dense / args.speedup

    def _cost(self) -> CostModel:
        def make() -> dict[str, Any]:
            cost = measure(self.model, self.variables, self.clock)
            bench = Bench(self.model, self.variables, self._layers(self._none()), cost, self.families)
            bench.learn_extra(list(self.families), self.shapes(), cost.dense / self.args.speedup, self.clock, print)
            cost = bench.cost
            facts = {"fixed": cost.fixed, "layer": cost.layer, "extra": cost.extra, "measured": cost.measured}
            return {**facts, "dense": cost.dense, "residual": cost.residual, "machine": describe_machine()}

        row = self.ledger.get("cost", make)
        extra = {name: tuple(pair) for name, pair in row["extra"].items()}
        measured = {int(n): ms for n, ms in row["measured"].items()}
        return CostModel(self.model.geometry, row["fixed"], tuple(row["layer"]), extra, measured)

    def shapes(self) -> dict[str, Any]:
        """Schedules made by hand."""
        return {name: shape for name, shape in shapes_of(self.model, None, np.zeros(0)).items() if name != LIVES}

    def _none(self) -> np.ndarray:
        return np.zeros((1, *self.model.img_size, self.model.in_chans), np.float32)

    def _layers(self, images: np.ndarray) -> Layerwise:
        return Layerwise(self.model, self.variables, images, programs=self.programs)

    def images(self, split: str, seed: int | None = None, count: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """`count` images of a split drawn by a seed, all of them for None, and their labels."""
        source, prepare = build.build_source(self.config, split), build.build_preprocess(self.config)
        chosen = np.arange(len(source))
        if seed is not None:
            chosen = np.sort(np.random.default_rng(seed).permutation(len(source))[:count])
        records = [source[int(index)] for index in chosen]
        images = np.stack([prepare(record["image"], record["name"]) for record in records])
        return images, np.asarray([record["label"] for record in records])

    def bench(self, images: np.ndarray, labels: np.ndarray | None = None) -> Bench:
        """On these images."""
        return Bench(self.model, self.variables, self._layers(images), self.cost, self.families, labels)

    def searches(self) -> Iterator[Schedule]:
        """(family, "found N", counts) of every search."""
        for seed in self.args.seeds:
            whole: Any = None
            for name in self.families:
                if self.args.searched and self.families[name].method.method not in self.args.searched:
                    continue
                what = f"search/{seed}/{name}"
                if whole is None and not any(row["what"] == what for row in self.ledger.rows):
                    images = self.images(self.args.split, seed, self.args.images)[0]
                    whole = images, self.bench(images)
                make = lambda whole=whole, name=name: self._search(name, *whole)
                yield name, f"found {seed}", tuple(self.ledger.get(what, make)["counts"])

    def _search(self, name: str, images: np.ndarray, whole: Bench) -> dict[str, Any]:
        """What was found; disagreement and its standard error on all images of the set, against the best by hand."""
        began = time.process_time()
        few = self.bench(images[:: max(1, len(images) // SCREENED)])
        rows = [few.row(name, shape, counts) for own, shape, counts in self.by_hand() if own == name]
        start = min(rows, key=lambda row: row.disagreement)
        race = Race.of(whole, images, {name: start.counts}, self.args.search_images)
        counts = race.search(name, start.counts, self.limit, self.args.evaluations, print)
        lost, before = (whole.lost(name, each) for each in (counts, start.counts))
        gain, error = (before - lost).mean(), (before - lost).std() / len(lost) ** 0.5
        return {
            "counts": counts,
            "start": start.shape,
            "started": {row.shape: row.disagreement for row in rows},
            "disagreement": float(lost.mean()),
            "gain": [float(gain), float(error)],
            "sample": [race.value(name, each) for each in (start.counts, counts)],
            "schedules": race.parts[0].evaluations,
            "cpu_seconds": time.process_time() - began,
        }

    def by_hand(self) -> Iterator[Schedule]:
        """(family, shape, counts), at the same cost."""
        bench = self.bench(self._none())
        for name in self.families:
            for shape, own in self.shapes().items():
                counts = bench.fitted(name, own, self.limit, step=1)
                if counts is not None:
                    yield name, shape, counts

    def held_out(self, schedules: list[Schedule]) -> None:
        """A row per schedule: what it loses on every held-out image."""
        bench = None
        for name, shape, counts in schedules:
            what = f"held/{name}/{shape}"
            if not any(row["what"] == what for row in self.ledger.rows):
                bench = bench or self.bench(*self.images(self.args.held_out))
            make = lambda bench=bench, name=name, shape=shape, counts=counts: self._row(bench, name, shape, counts)
            self.ledger.get(what, make)

    def _row(self, bench: Any, name: str, shape: str, counts: tuple[int, ...]) -> dict[str, Any]:
        row = bench.row(name, shape, counts)
        lost = bench.lost(name, counts)
        facts = {"counts": counts, "predicted_ms": row.predicted_ms, "accuracy": row.accuracy}
        return {"family": name, "shape": shape, **facts, "lost": [round(1e6 * x) for x in lost.tolist()]}

    def timed(self, schedules: list[Schedule]) -> None:
        """Real milliseconds of the best few, in turns."""

        def make() -> dict[str, Any]:
            bench = self.bench(self._none())
            models = {f"{name}/{shape}": self.families[name].at(counts) for name, shape, counts in schedules}
            return {"ms": bench.times(models, self.clock), "asked": self.limit, "machine": describe_machine()}

        self.ledger.get("times", make)


def tables(rows: list[dict[str, Any]]) -> str:
    """Markdown: every schedule on the held-out images, the best first, against the best made by hand.

    Bold is what some calibration set would have chosen, see `taken`.
    """
    times = next((row for row in rows if row["what"] == "times"), {"ms": {}})
    held, best, chosen = _held(rows), _best_by_hand(rows), list(taken(rows).values())
    cells = []
    for row in held:
        shape = f"**{row['shape']}**" if row in chosen else row["shape"]
        ms = times["ms"].get(f"{row['family']}/{row['shape']}")
        accuracy = "—" if row["accuracy"] is None else f"{100 * row['accuracy']:.1f}"
        line = [_family(row["family"]), shape, "—" if ms is None else f"{ms:.1f}", f"{_lost(row).mean():.4f}"]
        cells.append([*line, _gain(best, row), accuracy, " ".join(map(str, row["counts"]))])
    asked = f" (asked: {times['asked']:.1f})" if "asked" in times else ""
    heads = ["method", "schedule", f"ms{asked}", "lost", "less than by hand", "top-1, %"]
    return table([*heads, "patches left of every layer"], cells, 2)


def taken_tables(results: Mapping[str, list[dict[str, Any]]]) -> str:
    """Markdown: of every speed and calibration set what it would have chosen, and the mean over the sets.

    Args:
      results: rows of a whole file by the speed that was asked for.
    """
    cells = []
    for speed, rows in results.items():
        best, chosen = _best_by_hand(rows), taken(rows)
        assert best is not None
        by_hand = _lost(best).mean()
        named = f"{_family(best['family'])}, {best['shape']}: {by_hand:.4f}"
        for seed, row in chosen.items():
            what = f"{_family(row['family'])}, {row['shape'].removesuffix(f' {seed}')}"
            cells.append([speed, seed, what, f"{_lost(row).mean():.4f}", named, _gain(best, row)])
        means = np.asarray([_lost(row).mean() for row in chosen.values()])
        spread = means.std(ddof=1)
        mean = [f"{means.mean():.4f} ± {spread:.4f}", named, f"{by_hand - means.mean():+.4f} ± {spread:.4f}"]
        cells.append([speed, "mean", "", *mean])
    return table(["speed", "set", "taken", "lost", "best by hand", "less than by hand"], cells, 3)


def taken(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The held-out row of what each calibration set would have chosen, by the set's seed.

    That is what disagreed least on the set: of every method what was found, or where the search had begun.
    """
    on_set: dict[str, dict[str, float]] = {}
    for row in rows:
        if row["what"].startswith("search/"):
            _, seed, name = row["what"].split("/", 2)
            ways = on_set.setdefault(seed, {})
            ways[f"held/{name}/found {seed}"] = row["disagreement"]
            ways[f"held/{name}/{row['start']}"] = row["disagreement"] + row["gain"][0]
    held = {row["what"]: row for row in _held(rows)}
    best = {seed: min(ways, key=lambda what, ways=ways: ways[what]) for seed, ways in on_set.items()}  # type: ignore[misc]
    return {seed: held[what] for seed, what in sorted(best.items()) if what in held}


def _searched(row: Mapping[str, Any]) -> bool:
    return bool(row["shape"].startswith("found"))


def _held(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    held = [row for row in rows if row["what"].startswith("held/")]
    return sorted(held, key=lambda row: float(np.mean(row["lost"])))


def _best_by_hand(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """None where no schedule made by hand was looked at yet."""
    return next((row for row in _held(rows) if not _searched(row)), None)


def _lost(row: Mapping[str, Any]) -> np.ndarray:
    """Of every held-out image; files have millionths."""
    return np.asarray(row["lost"]) / 1e6


def _gain(best: Mapping[str, Any] | None, row: Mapping[str, Any]) -> str:
    if best is None or row is best:
        return "—"
    gain = _lost(best) - _lost(row)
    return f"{gain.mean():+.4f} ± {gain.std() / len(gain) ** 0.5:.4f}"


def _family(name: str) -> str:
    """A family as the tables call it: ToMe, coverage."""
    method = name.split(" ")[0]
    return "coverage" if "lives=coverage" in name else NAMES.get(method, method)


def picture(rows: list[dict[str, Any]], path: Path) -> None:
    """What every schedule loses on the held-out images, and the patches that it leaves of every layer."""
    import matplotlib
    from matplotlib.figure import Figure

    from slimvit_jax.reports.style import ACCENT, OF_DATA, QUIET, SECOND, log_scale, save

    held = _held(rows)[::-1]
    with matplotlib.rc_context(OF_DATA):
        figure = Figure(figsize=(9.2, 0.8 + 0.32 * len(held)), layout="constrained")
        left, right = figure.subplots(1, 2)
        for place, row in enumerate(held):
            lost = _lost(row)
            color = ACCENT if _searched(row) else SECOND if "life" in row["family"] else QUIET
            left.errorbar(lost.mean(), place, xerr=lost.std() / len(lost) ** 0.5, fmt="o", color=color, ms=5)
            right.step(range(len(row["counts"])), row["counts"], where="post", color=color, lw=1.6)
        names = [f"{row['shape']}, {_family(row['family'])}" for row in held]
        left.set_yticks(range(len(held)), names)
        log_scale(left.xaxis)
        left.set_title(f"disagreement on {len(held[0]['lost'])} held-out images")
        right.set_title("patches left of every layer")
        right.set_xticks(range(0, len(held[0]["counts"]), 2), range(1, len(held[0]["counts"]) + 1, 2))
        right.set_ylim(0)
        save(figure, path)


def parse(argv: list[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """The command line; what it does not know are overrides of config fields."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.budget", allow_abbrev=False)
    add = parser.add_argument
    add("--config", required=True, metavar="FILE", help="configs/study_photos.py, or a file like it")
    add("--out", required=True, type=Path, metavar="FILE", help="rows are added to it")
    add("--speedup", type=float, default=1.5, metavar="X")
    add("--methods", type=listed(str), default=["tome", "life_regression"], metavar="NAME,...")
    add("--searched", type=listed(str), default=[], metavar="NAME,...", help="of these; the others by hand alone")
    add("--seeds", type=listed(int), default=[0, 1, 2], metavar="S,...", help="of the calibration sets")
    add("--split", default="train", metavar="SPLIT", help="where they are drawn from")
    add("--images", type=int, default=256, metavar="N", help="images in each")
    add("--search-images", type=int, default=64, metavar="N", help="of these, those that say most")
    add("--held-out", default="val", metavar="SPLIT")
    add("--evaluations", type=int, default=60, metavar="N", help="schedules per search")
    add("--batch-size", type=int, default=1, metavar="B", help="whose latency counts")
    add("--rounds", type=int, default=7, metavar="N", help="samples of every time")
    add("--minutes", type=float, default=1e6, metavar="M")
    add("--table", action="store_true", help="print the table of what is done")
    add("--picture", type=Path, metavar="FILE", help="with --table: draw it too")
    return parser.parse_known_args(argv)


def run(args: argparse.Namespace, rest: list[str]) -> int:
    """Does what is not done yet."""
    ledger = Ledger(args.out, args.minutes)
    if args.table:
        print(tables(ledger.rows))
        if args.picture:
            picture(ledger.rows, args.picture)
        return 0
    ledger.get("about", lambda: {"command": command_line("budget", folders=False)})
    study = Study(training.load_config(args.config, training.parse_overrides(rest)), args, ledger)
    schedules = [*study.searches(), *study.by_hand()]
    study.held_out(schedules)
    study.timed(schedules)
    print(tables(ledger.rows))
    return 0


@in_one_line
def main(argv: list[str] | None = None) -> int:
    """Runs the command; exit status 2 for bad input, 3 where the minutes were over."""
    args, rest = parse(argv)
    try:
        return run(args, rest)
    except Enough:
        return 3


if __name__ == "__main__":
    restart_with_huge_pages()
    sys.exit(main())
