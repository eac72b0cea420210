"""What the study on photographs trains and evaluates: a pretrained ViT, tuned dense first, then slimmed.

The cheap and decisive ones come first. `untuned`: methods under the tuned dense model's weights. `main`: the methods
tuned for two epochs at equal multiply-adds, all alike. `choose`: experiments, one at a time, on how life regression is
trained, judged on training images that no run has learned from. `untuned` again, at rates that drop less.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.study_cells import DISTILLED, HARD, REFERENCE, SAMPLED, Cell, matched_options

HELD_OUT = "train[80%:]"
COVERAGE = {"lives": "coverage", "squeeze": "mean"}
#: The same share in every layer from the third on; chosen on held-out training images (docs/budget.md).
EVERY = COVERAGE | {"locations": tuple(range(3, 12))}
BOTH = {"lives": "both", "squeeze": "mean"}
#: Name on the page: method and the options that make it.
UNTUNED = {
    "coverage lives, squeezed": (REFERENCE, COVERAGE),
    "tome": ("tome", {}),
    "random": ("random", {}),
    "topk": ("topk", {}),
    "evit": ("evit", {}),
    "coverage lives, squeezed in every layer": (REFERENCE, EVERY),
    "coverage lives, dropped": (REFERENCE, {"lives": "coverage"}),
    "random, squeezed": ("random", {"squeeze": "mean"}),
}
#: The same, of less weight.
ALSO_UNTUNED = {
    "evit, squeezed": ("evit", {"squeeze": "mean", "fuse_token": False}),
    "pitome": ("pitome", {}),
    "tofu": ("tofu", {}),
    "diffrate": ("diffrate", {}),
    "mctf": ("mctf", {}),
    "dpcknn": ("dpcknn", {}),
    "kmedoids": ("kmedoids", {}),
    "ats": ("ats", {}),
}
#: Trained with every seed at both rates; the others with the first alone.
SEVERAL = ("life_regression, squeezed", "tome", "random", "topk")
#: Of the methods since 2023, the two that are most accurate at 0.5 without tuning (on the validation images).
NEWEST = ("mctf", "tofu")
#: Single-stage training of a predictor and its backbone, as on Fashion-MNIST.
JOINT = {"lr": {"method": 1e-2}}
#: Hard masks, the keep rate of every image drawn anew.
ANY_RATE = {"method_options": HARD["method_options"] | SAMPLED["method_options"]}


def all_cells(base: Any, seeds: Sequence[int], full: bool = False) -> Iterator[Cell]:
    """Every cell, what matters most first.

    Args:
      base: the study's config.
      seeds: of the runs.
      full: every question with every seed.
    """
    name, options = base.model.name, base.model.options.to_dict()
    cached = functools.cache(
        lambda method, rate, fixed: matched_options(options, method, rate, name=name, **dict(fixed))
    )
    matched = lambda method, rate, fixed=(): cached(method, rate, tuple(dict(fixed).items()))
    yield Cell("untuned", "dense", "dense", {}, 1.0, seeds[0], ())
    yield Cell("choose", "dense", "dense", {}, 1.0, seeds[0], (), {}, (), HELD_OUT)
    yield from _untuned(matched, UNTUNED, (0.5, 0.7), seeds[0])
    for rate in (0.5, 0.7):
        yield from itertools.islice(_main(matched, rate, seeds[0], everything=True), len(SEVERAL))
    yield from _choose(matched, seeds[0])
    for number, seed in enumerate(seeds):
        if number == 0 or full:
            yield _stage("main", "dense", "dense", {}, 1.0, seed, {"slimmed": False})
        for rate in (0.5, 0.7):
            cells = _main(matched, rate, seed, everything=number == 0 or full)
            yield from itertools.islice(cells, 0 if number else len(SEVERAL), None)
    yield from _untuned(matched, ALSO_UNTUNED, (0.7, 0.5), seeds[0])
    yield from _untuned(matched, UNTUNED | ALSO_UNTUNED, (0.9, 0.8), seeds[0])


def _untuned(matched: Any, kinds: Any, rates: Sequence[float], seed: int) -> Iterator[Cell]:
    for rate in rates:
        for variant, (method, fixed) in kinds.items():
            yield Cell("untuned", variant, method, matched(method, rate, fixed), rate, seed, ())


def _choose(matched: Any, seed: int) -> Iterator[Cell]:
    """Ways to train life regression at 0.5, where they differ most."""
    life = lambda fixed: matched(REFERENCE, 0.5, fixed)
    cases = {
        "learned lives, hard masks": ({}, {**HARD, **JOINT}),
        "coverage lives, squeezed": (COVERAGE, HARD),
        "coverage lives, squeezed, logits": (COVERAGE, {**HARD, **DISTILLED}),
        "coverage lives, squeezed, rates drawn": (COVERAGE, ANY_RATE),
        "both lives, squeezed": (BOTH, {**HARD, **JOINT}),
        "both lives, squeezed, logits": (BOTH, {**HARD, **JOINT, **DISTILLED}),
    }
    for variant, (fixed, fields) in cases.items():
        yield _stage("choose", variant, REFERENCE, life(fixed), 0.5, seed, fields, HELD_OUT)


def _main(matched: Any, rate: float, seed: int, everything: bool) -> Iterator[Cell]:
    squeezed = matched(REFERENCE, rate, COVERAGE)
    cases = {
        "life_regression, squeezed": (REFERENCE, squeezed, HARD),
        "tome": ("tome", matched("tome", rate), {}),
        "random": ("random", matched("random", rate), {}),
        "topk": ("topk", matched("topk", rate), {}),
        "life_regression, hard masks": (REFERENCE, matched(REFERENCE, rate), {**HARD, **JOINT}),
        "life_regression, squeezed in every layer": (REFERENCE, matched(REFERENCE, rate, EVERY), HARD),
        "evit": ("evit", matched("evit", rate), {}),
        "dynamicvit": ("dynamicvit", matched("dynamicvit", rate), {}),
        **{name: (name, matched(name, rate), {}) for name in NEWEST},
    }
    for variant, (method, options, fields) in cases.items():
        if everything or variant in SEVERAL:
            yield _stage("main", variant, method, options, rate, seed, fields)
    if everything:
        paper = matched(REFERENCE, rate)
        yield Cell("main", "life_regression", REFERENCE, paper, rate, seed, ("predictor", "backbone"))
    if rate == 0.5:
        yield _stage("main", "one for all budgets", REFERENCE, squeezed, rate, seed, ANY_RATE, "", (0.9, 0.8, 0.7))


def _stage(
    group: str, variant: str, method: str, options: Any, rate: float, seed: int, fields: Any, split: str = "",
    rates: tuple[float, ...] = (),
) -> Cell:  # fmt: skip
    stages = {"finetune": fields}
    return Cell(group, variant, method, options, rate, seed, ("finetune",), stages, (), split, rates)
