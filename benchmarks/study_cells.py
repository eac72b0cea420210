"""What the study trains: one `Cell` per run, all of them fine-tuned from the same dense weights at matched cost.

Life regression at locations (4, 7, 10) sets the cost of a keep rate. Every other method gets the keep rate of its own
at which its multiply-adds come nearest to that (`matched_options`), and every cell the same number of epochs.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

import slimvit_jax as slim
from benchmarks.results import ANY_BUDGET, FITTED_GATE, LIFE, PAPER_LOSSES, RECOMMENDED, WITH_LOGITS
from slimvit_jax.methods import METHODS

#: The main comparison also has these two: the dense model trained on for as long, and random patches.
REFERENCE = LIFE
LOCATIONS = (4, 7, 10)
#: Methods whose papers' locations differ keep them; the matched keep rate evens out the cost.
OWN_LOCATIONS = ("evo", "ia_red2", "avit")
#: Methods that merge some tokens in every layer, and those whose cost a share of the tokens per layer sets.
PER_LAYER = ("tome", "dtem")
BY_RATIO = ("pitome", "tofu")
#: The papers' tables have these; they come first.
FIRST = ("dense", "life_regression", "random", "topk", "evit", "dynamicvit", "tome", "evo", "sit")
#: These are trained with every seed, at 0.7 and 0.5; the others with the first seed.
CENTRAL = ("life_regression", "random", "topk", "evit", "tome")
#: Of the others, those trained at 0.5 too.
ALSO_AT_HALF = ("dynamicvit",)
#: These have no parameters of their own, so that they work without any tuning.
WITHOUT_PARAMETERS = ("random", "topk", "evit", "tome", "ats", "dpcknn", "kmedoids")
#: A-ViT's gate for the study's model. At 10 the untuned model's halting scores, of which 1 ends a token, sum to about
#: 0.5 over the layers; at 30, its release's value for DeiT-T, they are below 1e-4 until layer 9: hardly any gradient.
AVIT_GATE = 10.0
#: Patches per layer that cost what life regression costs at 0.7 on 49 patches: a few fewer in every layer.
GRADUAL = {
    "from layer 2 on": (49, 46, 43, 41, 38, 36, 33, 31, 28, 25, 22, 20),
    "from layer 5 on": (49, 49, 49, 49, 40, 36, 32, 29, 25, 22, 18, 14),
}
#: Changes of a stage's fields, for life regression; the second for every method.
HARD = {"method_options": {"hard": True}}
DISTILLED = {"loss_weights": {"distillation": 1.0}}
SAMPLED = {"method_options": {"sampled_rates": (0.9, 0.8, 0.7, 0.5)}}
#: Hard masks without computing what they mask: the kept patches alone, or with so many of those dropped at a location.
KEPT = {
    f"kept patches{more}, single stage": {
        "method_options": {"hard": True, "train_tokens": "kept", "sampled_dropped": sampled}
    }
    for sampled, more in {0: "", 4: " and 4 of the dropped"}.items()
}


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run.

    Attributes:
      group: the question it belongs to; (group, variant) pairs in `also` are further ones it answers.
      variant: its place in the group.
      method, options: "dense" for the model without a method.
      train_rate: the keep rate trained at, as life regression counts it.
      seed: of data order, augmentation and new parameters.
      schedule: stages of the study's config that it runs; none: the dense weights are evaluated as they are.
      stages: fields of them that differ.
      eval_split: what it is evaluated on; "": the config's.
      eval_rates: further keep rates that the same weights are evaluated at, as life regression counts them.
    """

    group: str
    variant: str
    method: str
    options: Mapping[str, Any]
    train_rate: float
    seed: int
    schedule: tuple[str, ...]
    stages: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    also: tuple[tuple[str, str], ...] = ()
    eval_split: str = ""
    eval_rates: tuple[float, ...] = ()

    @property
    def name(self) -> str:
        """Unique."""
        return f"{self.group}/{self.variant}/{self.train_rate:g}/seed{self.seed}"

    def config(self, base: Any, dense_weights: str) -> Any:
        """The training config of this run: the study's, with this method, from the dense weights."""
        config = copy.deepcopy(base)
        config.name = self.name
        config.seed = self.seed + 1  # 0 was the dense model's
        config.method.name = "" if self.method == "dense" else self.method
        config.method.options = dict(self.options)
        config.init.path = dense_weights
        config.init.options = {}
        config.data.eval_split = self.eval_split or config.data.eval_split
        config.schedule = self.schedule
        for stage, fields in self.stages.items():
            for field, value in fields.items():
                if isinstance(value, Mapping):
                    config.stages[stage][field].update(value)
                else:
                    config.stages[stage][field] = value
        for stage in set(config.stages.keys()) - set(self.schedule):
            del config.stages[stage]
        return config


def reference_flops(model_options: Mapping[str, Any], keep_rate: float, name: str = "vit") -> int:
    """What life regression, without anything on top, costs at this keep rate."""
    if keep_rate == 1:
        return slim.flops(slim.create_model(name, **model_options)).total
    return slim.flops(_model(model_options, REFERENCE, {"keep_rate": keep_rate, "locations": LOCATIONS}, name)).total


def matched_options(
    model_options: Mapping[str, Any], method: str, keep_rate: float, name: str = "vit", **fixed: Any
) -> dict[str, Any]:
    """Options at which a method costs what life regression costs at `keep_rate`, as nearly as it can.

    Args:
      model_options, name: of the backbone.
      method: its name.
      keep_rate: as life regression counts it.
      **fixed: options of the method that are given.

    Raises:
      SlimError: nothing comes within a tenth of that cost.
    """
    if method in (REFERENCE, "random") and not fixed:
        return {"keep_rate": keep_rate, "locations": LOCATIONS}
    if method == "avit":  # halts as it likes while it trains; deployed at life regression's budgets
        budgets = _model(model_options, REFERENCE, {"keep_rate": keep_rate, "locations": LOCATIONS}, name).slim.counts
        return {"budgets": budgets, "gate_center": AVIT_GATE}
    target = reference_flops(model_options, keep_rate, name)
    costs = _costs(name, tuple(model_options.items()), method, tuple(fixed.items()))
    cost, best = min(costs, key=lambda pair: abs(pair[0] - target))
    if abs(cost - target) > 0.1 * target:
        raise slim.SlimError(f"{method} cannot cost {target} multiply-adds: the nearest is {cost} with {best}")
    return dict(best)


@functools.cache
def _costs(
    name: str, model_options: tuple[tuple[str, Any], ...], method: str, fixed: tuple[tuple[str, Any], ...]
) -> list[tuple[int, dict[str, Any]]]:
    """(multiply-adds, options) of every choice: hundreds of models, the same for all keep rates."""
    depth, costs = slim.create_model(name, **dict(model_options)).geometry.depth, []
    for choice in _choices(method, depth):
        with contextlib.suppress(slim.SlimError):  # too few tokens left for this method
            options = {**choice, **dict(fixed)}
            costs.append((slim.flops(_model(dict(model_options), method, options, name)).total, options))
    return costs


def _choices(method: str, depth: int) -> list[dict[str, Any]]:
    """The options that a method's cost can be varied by."""
    if method in PER_LAYER:  # a whole number of merges per layer is too coarse: spread their sum
        return [{"r": spread(total, depth)} for total in range(1, 400)]
    if method == "mctf":
        return [{"r": share, "layers": LOCATIONS} for share in np.round(np.arange(0.02, 0.7, 0.0025), 4).tolist()]
    if method == "cropr":
        return [{"pruning_rate": rate, "llf": llf} for rate in range(1, 40) for llf in (True, False)]
    if method in BY_RATIO:
        return [{"ratio": ratio} for ratio in np.round(np.arange(0.8, 1.0, 0.0025), 4).tolist()]
    located = "locations" in {field.name for field in dataclasses.fields(METHODS[method])}
    fixed = {"locations": LOCATIONS} if located and method not in OWN_LOCATIONS else {}
    return [{**fixed, "keep_rate": rate} for rate in np.round(np.arange(0.05, 1.0001, 0.005), 3).tolist()]


def spread(total: int, layers: int) -> tuple[int, ...]:
    """`total` as whole numbers over the layers, as evenly as they can be.

    >>> spread(5, 3)
    (1, 2, 2)
    """
    return tuple((layer + 1) * total // layers - layer * total // layers for layer in range(layers))


def _model(model_options: Mapping[str, Any], method: str, options: Mapping[str, Any], name: str) -> Any:
    return slim.create_model(name, method=method, **model_options, **options)


def all_cells(base: Any, seeds: Sequence[int], full: bool = False) -> Iterator[Cell]:
    """Every cell, what matters most first: a study cut short then still compares something.

    Args:
      base: the study's config.
      seeds: of the runs. All of them answer the central comparison, the first alone the other questions.
      full: every question with every seed, and every method at every rate.
    """
    model_options = base.model.options.to_dict()
    names = [*FIRST, *sorted(set(slim.list_methods()) - set(FIRST))]
    matched = functools.cache(lambda method, rate: matched_options(model_options, method, rate))
    few = seeds if full else seeds[:1]
    for seed in seeds:
        if seed in few:
            yield _one_stage("main", "dense", "dense", {}, 1.0, seed)
        for rate in (0.7, 0.5):
            for method in CENTRAL:
                yield _main(method, matched(method, rate), rate, seed)
            yield _joint(RECOMMENDED, rate, seed, HARD)
            yield _with_logits(rate, seed)
        for variant, changes in KEPT.items():
            yield _joint(variant, 0.5, seed, changes, group="train_tokens")
        for rate in (0.7, 0.5) if seed in few else ():
            for method in ("random", "topk"):
                options, stages = matched(method, rate), {"finetune": DISTILLED}
                yield _one_stage("distilled", method, method, options, rate, seed, stages)
    for seed in few:
        for rate in (0.9, 0.8, 0.7, 0.5):
            for method in WITHOUT_PARAMETERS:
                yield Cell("untuned", method, method, matched(method, rate), rate, seed, ())
        for method in [name for name in names[1:] if name not in CENTRAL]:
            for rate in (0.7, 0.5) if full or method in ALSO_AT_HALF else (0.7,):
                yield _main(method, matched(method, rate), rate, seed)
        yield from _training(seed, full)
        yield from _search(seed)
        yield from _ablations(base, seed, matched("avit", 0.7))
        for rate in (0.9, 0.8):
            for method in names[1:] if full else ("life_regression", "random", "topk", "tome"):
                yield _main(method, matched(method, rate), rate, seed)


def _one_stage(group: str, variant: str, method: str, options: Any, rate: float, seed: int, stages: Any = None) -> Cell:
    stages = dict(stages or {})
    if method == "dense":
        stages["finetune"] = {"slimmed": False}
    return Cell(group, variant, method, options, rate, seed, ("finetune",), stages)


def _main(method: str, options: Any, rate: float, seed: int) -> Cell:
    if method != REFERENCE:
        cell = _one_stage("main", method, method, options, rate, seed)
        return dataclasses.replace(cell, also=(("gate", FITTED_GATE),)) if (method, rate) == ("avit", 0.7) else cell
    also = [("stages", "two stages")]
    if rate == 0.7:
        also += [("temperature", "U=1.5"), ("rates", "ours"), ("gradient", "through the lives")]
        also += [("initialisation", "normal 0.02"), ("training", PAPER_LOSSES)]
    elif rate == 0.5:
        also += [("training", PAPER_LOSSES)]
    return dataclasses.replace(_life("main", method, rate, seed), also=tuple(also))


def _life(group: str, variant: str, rate: float, seed: int, stages: Any = None, **options: Any) -> Cell:
    options = {"keep_rate": rate, "locations": LOCATIONS, **options}
    return Cell(group, variant, REFERENCE, options, rate, seed, ("predictor", "backbone"), stages or {})


def _joint(
    variant: str, rate: float, seed: int, *changes: Mapping[str, Any], group: str = "training", **options: Any
) -> Cell:
    """Life regression with predictor and backbone in one stage, the predictor at the rate it has in its own."""
    options = options or {"keep_rate": rate, "locations": LOCATIONS}
    stages = {"finetune": _all({"lr": {"method": 1e-2}}, *changes)}
    return _one_stage(group, variant, REFERENCE, options, rate, seed, stages)


def _with_logits(rate: float, seed: int) -> Cell:
    also = (("schedule", "at three layers"), ("search", WITH_LOGITS)) if rate == 0.7 else ()
    return dataclasses.replace(_joint(WITH_LOGITS, rate, seed, HARD, DISTILLED), also=also)


def _all(*changes: Mapping[str, Any]) -> dict[str, Any]:
    """Changes of a stage's fields, together."""
    together: dict[str, Any] = {}
    for change in changes:
        for field, value in change.items():
            together[field] = {**together.get(field, {}), **value}
    return together


def _ablations(base: Any, seed: int, avit: Mapping[str, Any]) -> Iterator[Cell]:
    """The paper's tables IV and V, then questions of our own; `avit` are its options in the main comparison."""
    for rate in (0.7, 0.8, 0.9):
        yield _joint("single stage", rate, seed, group="stages")
    if base.model.options.img_size == 7 * base.model.options.patch_size:
        for label, budgets in GRADUAL.items():
            changes = (HARD, DISTILLED)
            yield _joint(f"a few in every layer, {label}", 0.7, seed, *changes, group="schedule", budgets=budgets)
    for temperature in (0.5, 1.0, 2.0, 3.0):
        yield _life("temperature", f"U={temperature:g}", 0.7, seed, temperature=temperature)
    for label, predictor, backbone in (("as printed", 1e-5, 1e-3), ("exchanged", 1e-3, 1e-5)):
        stages = {"predictor": {"lr": {"method": predictor}}, "backbone": {"lr": {"backbone": backbone}}}
        yield _life("rates", label, 0.7, seed, stages)
    released = {name: value for name, value in avit.items() if name != "gate_center"}
    yield _one_stage("gate", "30, its release's for DeiT-T", "avit", released, 0.7, seed)
    yield _life("gradient", "stopped at the lives", 0.7, seed, stop_gradient=True)
    for kind, scale in (("normal", 0.2), ("identity", 0.1), ("negative_identity", 0.1)):
        label = f"{kind.replace('_', ' ')} {scale:g}"
        yield _life("initialisation", label, 0.7, seed, predictor_init=kind, predictor_scale=scale)


def _search(seed: int) -> Iterator[Cell]:
    """Attempts to come nearer to the dense model at 0.7."""
    more = {
        "logits weighed 4": {"loss_weights": {"distillation": 4.0}},
        "W negative identity 0.1": {
            "method_options": {"predictor_init": "negative_identity", "predictor_scale": 0.1},
        },
        "backbone at 1e-3": {"lr": {"backbone": 1e-3}},
    }
    for label, change in more.items():
        yield _joint(label, 0.7, seed, HARD, DISTILLED, change, group="search")
    alone = _all(HARD, DISTILLED) | {"epochs": 0.3}
    together = _all(HARD, DISTILLED, {"lr": {"method": 1e-3}}) | {"epochs": 1.7}
    cell = _joint("the predictor alone for 0.3 epochs", 0.7, seed, group="search")
    stages = {"predictor": alone, "finetune": together}
    yield dataclasses.replace(cell, schedule=("predictor", "finetune"), stages=stages)


def _training(seed: int, full: bool) -> Iterator[Cell]:
    """Changes of life regression's training, in search of lives that beat random ones by more.

    All with the same two epochs: one for the predictor, one for the backbone, unless the name says a single stage.
    Logits without hard masks, and both in the second stage alone, only where the whole table is asked for.
    """
    second = lambda *changes: {"backbone": _all(*changes)}
    both = lambda *changes: {"predictor": _all(*changes), **second(*changes)}
    at = lambda temperature: {"method_options": {"temperature": temperature}}
    annealed = {"predictor": at(0.75), "backbone": at(3.0)}
    for rate in (0.5, 0.7) if full else (0.5,):
        yield _life("training", "hard masks in stage 2", rate, seed, second(HARD))
        yield _life("training", "hard masks and distillation", rate, seed, both(HARD, DISTILLED))
        if full:
            yield _life("training", "distillation", rate, seed, both(DISTILLED))
            yield _life("training", "hard masks and distillation in stage 2", rate, seed, second(HARD, DISTILLED))
            yield _joint("distillation, single stage", rate, seed, DISTILLED)
        yield _life("training", "sampled budgets", rate, seed, both(SAMPLED))
        yield _life("training", "temperature 0.75, then 3", rate, seed, annealed)
    # one set of weights that has drawn every budget, so that it answers for all
    everything = second(HARD, DISTILLED, SAMPLED)
    yield _life("training", "hard masks, distillation, sampled budgets in stage 2", 0.5, seed, everything)
    yield _joint(ANY_BUDGET, 0.5, seed, HARD, DISTILLED, SAMPLED)
