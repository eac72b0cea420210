"""The report of a training run: accuracy and speed at every keep rate from one set of weights, in words and pictures.

`write_report` measures (`measure`), draws, and writes report.json, report.md and figures/ into the run's folder. The
words are in report_text.py and only restate the numbers of report.json.
"""

from __future__ import annotations

import itertools
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from slimvit_jax.data import pixels_of, samples
from slimvit_jax.files import write_json, write_text
from slimvit_jax.inference.evaluate import (
    EvalResult,
    Inference,
    Speed,
    evaluate,
    measure_speed,
    paired_difference,
    random_lives,
)
from slimvit_jax.inference.flops import flops
from slimvit_jax.reports import pictures, report_text, tables, visualize


def write_report(workdir: str | Path, config: Any, result: Any) -> dict[str, Any]:
    """Measures a finished run and writes report.json, report.md and figures/*.png into `workdir`; prints one table.

    Args:
      workdir: the run's folder.
      config: the run's configuration; `eval.keep_rates` and `report.{images,seeds,batch_size,rounds}` count here.
      result: training.RunResult.

    Returns:
      What report.json holds. With several processes all measure the same and the first one writes.
    """
    workdir = Path(workdir)
    began = time.perf_counter()
    measured = _Measurement(config, result)
    facts = measured.run()
    if jax.process_index() == 0:
        write_json(workdir / "report.json", facts)  # the numbers are there whatever becomes of the pictures
        drawn = measured.draw(workdir / "figures", facts)
        facts["figures"] = {kind: path.relative_to(workdir).as_posix() for kind, path in drawn.items()}
        facts["seconds_of_report"] = round(time.perf_counter() - began, 1)
        write_json(workdir / "report.json", facts)
        write_text(workdir / "report.md", report_text.markdown(facts))
        report_text.print_summary(facts, workdir)
    return facts


class _Measurement:
    """Models, weights and images of one report; `run` gives the facts, `draw` the pictures."""

    def __init__(self, config: Any, result: Any) -> None:
        from slimvit_jax import data
        from slimvit_jax.training import build

        self.config, self.result = config, result
        self.source = build.build_source(config, config.data.eval_split)
        self.prepare = build.build_preprocess(config)
        # Every process looks at every image on its own devices: the paired comparisons need all of them in one place.
        self.batches = data.eval_batches(
            self.source,
            preprocess=self.prepare,
            batch_size=config.report.batch_size,
            multiple_of=jax.local_device_count(),
        )
        self.slimmed_stages = [name for name in result.variables if config.stages[name].slimmed and config.method.name]
        self.dense_stages = [name for name in result.variables if name not in self.slimmed_stages]
        self.final = list(result.variables)[-1]
        self.budgets: dict[str, Inference] = {}
        self.dense = Inference(result.dense_model, self._dense_variables())
        if self.slimmed_stages:
            for name, model in self._models().items():
                self.budgets[name] = Inference(model, result.variables[self.final])

    def _dense_variables(self) -> Any:
        if self.dense_stages:
            return self.result.variables[self.dense_stages[-1]]
        from slimvit_jax.training import build

        return build.start_variables(self.config, self.result.dense_model)

    def _models(self) -> dict[str, Any]:
        """One model per keep rate; where the method has no keep rate, the run's own model only."""
        from slimvit_jax.methods import METHODS
        from slimvit_jax.training import build

        name, last = self.config.method.name, self.slimmed_stages[-1]
        if "keep_rate" not in METHODS[name].__dataclass_fields__ or not METHODS[name].any_budget:
            return {name: build.build_model(self.config, stage=last)}
        return {
            f"{rate:g}": build.build_model(self.config, stage=last, keep_rate=rate)
            for rate in self.config.eval.keep_rates
        }

    # Numbers -------------------------------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        seeds = int(self.config.report.seeds) if self.result.model.slim.predicts_lives else 0
        passes = 2 + len(self.budgets) * (len(self.slimmed_stages) + 2 * seeds)
        with tables.progress("report", passes, "passes") as advance:
            evaluated = self._evaluator(advance)
            dense = evaluated(self.dense)
            rows = [self._row("dense", self.dense, dense)]
            if self.slimmed_stages:
                tuned = evaluated(self.dense.with_variables(self._without_method(self.result.variables[self.final])))
                rows.append(self._row("all kept", self.dense, tuned, against=dense))
                for name, run in self.budgets.items():
                    rows.append(self._budget_row(name, run, evaluated, dense, seeds))
        sizes = {"dense": self.dense, **self.budgets}
        batch = -(-int(self.config.report.batch_size) // self.dense.devices) * self.dense.devices
        speeds = measure_speed(sizes, batch, rounds=int(self.config.report.rounds), images=self._noise(batch))
        for row in rows:
            _add_speed(row, speeds["dense" if row["name"] == "all kept" else row["name"]], speeds["dense"])
        return self._facts() | {"rows": rows}

    def _evaluator(self, advance: Callable[[int], None]) -> Callable[..., EvalResult]:
        done = itertools.count(1)

        def evaluated(run: Inference, lives: Any = None) -> EvalResult:
            outcome = evaluate(run, None, self.batches, lives=lives, across_processes=False)
            advance(next(done))
            return outcome

        return evaluated

    def _noise(self, batch: int) -> np.ndarray:
        shape = (batch, *self.result.dense_model.img_size, self.result.dense_model.in_chans)
        return np.random.default_rng(0).standard_normal(shape, np.float32)

    def _row(self, name: str, run: Inference, outcome: EvalResult, against: EvalResult | None = None) -> dict[str, Any]:
        row: dict[str, Any] = {
            "name": name,
            "token_counts": list(run.model.slim.plan.token_counts),
            "flops": flops(run.model).total,
            **outcome.summary(),
        }
        if against is not None:
            difference, error = paired_difference(outcome.hits, against.hits)
            row["minus_dense"] = {"difference": difference, "stderr": error}
        return row

    def _budget_row(
        self, name: str, run: Inference, evaluated: Callable[..., EvalResult], dense: EvalResult, seeds: int
    ) -> dict[str, Any]:
        variables = self.result.variables
        learned = evaluated(run)
        row = self._row(name, run, learned, against=dense)
        row["by_stage"] = {self.final: learned.top1}
        for stage in self.slimmed_stages[:-1]:
            row["by_stage"][stage] = evaluated(run.with_variables(variables[stage])).top1
        if seeds:
            orders = [random_lives(run.model.geometry.num_patches, seed) for seed in range(seeds)]
            row["random"] = _random(learned, [evaluated(run, lives=order) for order in orders])
            plain = run.with_variables(self._dense_under(variables[self.final]))
            row["random_on_dense_weights"] = _random(learned, [evaluated(plain, lives=order) for order in orders])
        return row

    def _dense_under(self, variables: Any) -> Any:
        """The dense model's weights with the method's own parameters, which an imposed order leaves unused."""
        params = {**variables["params"], **self.dense.variables["params"]}
        return {**variables, "params": params}

    @staticmethod
    def _without_method(variables: Any) -> Any:
        params = {name: value for name, value in variables["params"].items() if name != "slim"}
        return {**variables, "params": params}

    def _facts(self) -> dict[str, Any]:
        from slimvit_jax.training import build

        model, config = self.result.model, self.config
        # a stage may set a keep rate of its own
        trained = build.build_model(config, self.final in self.slimmed_stages, self.final)
        device = jax.devices()[0]
        return {
            "name": config.name,
            "model": config.model.name,
            "method": config.method.name or "dense",
            "predicts_lives": trained.slim.predicts_lives,
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(self.dense.variables["params"])),
            "depth": model.geometry.depth,
            "patches": model.geometry.num_patches,
            "data": {"name": self.source.name, "split": self.source.split, "images": len(self.source)},
            "trained_at": _trained_at(trained.slim),
            "locations": list(getattr(model.slim, "locations", ())),
            "seconds": {stage: round(s, 1) for stage, s in self.result.seconds.items()},
            "batch_size": int(config.report.batch_size),
            "rounds": int(self.config.report.rounds),
            "seeds": int(config.report.seeds),
            "dtype": model.dtype,
            "device": f"{jax.local_device_count()} x {device.device_kind} ({device.platform})",
            "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} CPU cores",
        }

    # Pictures ------------------------------------------------------------------------------------------------------

    def draw(self, folder: Path, facts: dict[str, Any]) -> dict[str, Path]:
        """Draws what there is to draw; names and paths of the files."""
        if not self.budgets:
            return {}
        rows = facts["rows"]
        slimmed = [row for row in rows if row["name"] in self.budgets]
        life = facts["predicts_lives"]
        series = {
            "dense": [_point(rows[0])],
            ("the model's lives" if life else facts["method"]): [_point(r) for r in slimmed],
        }
        for key, label in (("random", "random lives"), ("random_on_dense_weights", "random lives, dense weights")):
            if all(key in row for row in slimmed):
                series[label] = [
                    _point(row) | {"top1": row[key]["top1"], "stderr": row[key]["stderr"]} for row in slimmed
                ]
        title = (
            f"{facts['data']['name']}, {facts['data']['images']} held-out images: one set of weights, every keep rate"
        )
        drawn = {
            "speed": visualize.draw_accuracy_speed(folder / "accuracy_speed.png", series, title=title, dense="dense"),
        }
        count = min(int(self.config.report.images), len(self.source))
        records = samples(self.source, count)
        run = self.budgets.get(self._trained_rate()) or next(iter(self.budgets.values()))
        if count:
            pixels, shown = (pixels_of(records, each) for each in (self.prepare, self.prepare.for_display()))
            outputs = run(self.prepare.normalise(pixels))
            names = self.source.class_names
            titles = [
                f"{names[record['label']]} → {names[guess] if guess < len(names) else guess}"
                for record, guess in zip(records, np.asarray(outputs.logits).argmax(1), strict=True)
            ]
            if outputs.kept or outputs.scores is not None:
                drawn["lives"] = pictures.picture_lives(folder / "lives.png", run.model, outputs, shown, titles)
            if run.model.slim.merges:
                images, path = self.prepare.normalise(pixels), folder / "groups.png"
                groups = pictures.picture_groups(path, run.model, run.variables, images, shown, titles)
                drawn |= {} if groups is None else {"groups": groups}
            if life:
                drawn["weights"] = pictures.picture_weights(
                    folder / "weights.png", run.model, np.asarray(outputs.scores)
                )
        return drawn

    def _trained_rate(self) -> str:
        rate = getattr(self.result.model.slim, "keep_rate", None)
        return f"{rate:g}" if isinstance(rate, float | int) else ""


def _trained_at(slim: Any) -> dict[str, Any]:
    """The budget that training had, by its option: {"sampled_rates": ...}, {"budgets": ...}, {"keep_rate": ...}, {}."""
    if slim.trained_rates:
        return {"sampled_rates": list(slim.trained_rates)}
    for name in (*slim.in_place_of_keep_rate, "keep_rate"):
        if getattr(slim, name, None) is not None:
            return {name: getattr(slim, name)}
    return {}


def _random(learned: EvalResult, outcomes: Sequence[EvalResult]) -> dict[str, Any]:
    """Mean accuracy of random orders; the lead of the model's own order over them, paired by image."""
    hits = np.mean([outcome.hits for outcome in outcomes], axis=0)
    difference, error = paired_difference(learned.hits, hits)
    return {
        "top1": float(hits.mean()),
        "stderr": float(hits.std(ddof=1) / np.sqrt(len(hits))) if len(hits) > 1 else None,
        "each": [outcome.top1 for outcome in outcomes],
        "learned_minus_random": {"difference": difference, "stderr": error},
    }


def _add_speed(row: dict[str, Any], speed: Speed, dense: Speed) -> None:
    low, high = np.quantile(speed.seconds, [0.25, 0.75])
    row["images_per_second"] = speed.images_per_second
    row["images_per_second_quartiles"] = [speed.batch_size / high, speed.batch_size / low]
    # The two models of one round ran next to each other, so a ratio per round is free of what drifts between rounds.
    row["speed_ratio"] = float(np.median(np.divide(dense.seconds, speed.seconds)))


def _point(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "label": row["name"],
        "images_per_second": row["images_per_second"],
        "top1": row["top1"],
        "stderr": row["top1_stderr"],
    }
