"""What a search asks for: counts at a cost, how much they disagree, and real times."""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from slimvit_jax.budget import schedules
from slimvit_jax.budget.cost import Clock, CostModel
from slimvit_jax.budget.layerwise import Family, Layerwise
from slimvit_jax.budget.schedules import Counts, Shape
from slimvit_jax.errors import SlimError
from slimvit_jax.inference.evaluate import Inference, measure_speed
from slimvit_jax.options import shown
from slimvit_jax.plan import Plan
from slimvit_jax.slimming import Slimming

Say = Callable[[str], None]
#: How far the measured time may be from the target before the counts are scaled again.
CLOSE = 0.01
#: Counts are looked at in so many steps: few, so that programs are shared.
STEPS = 16


@dataclasses.dataclass(frozen=True)
class Row:
    """A schedule that was looked at.

    Attributes:
      family, shape: the method with its options, and the schedule's name: "found", or that of one made by hand.
      counts: patches left of every layer.
      predicted_ms: of one batch, by the cost model.
      disagreement: mean over the images.
      stderr: its standard error.
      accuracy: share of right answers, where labels were given; else None.
    """

    family: str
    shape: str
    counts: Counts
    predicted_ms: float
    disagreement: float
    stderr: float
    accuracy: float | None = None


class Bench:
    """What a search asks for: counts at a cost, their disagreement, and times.

    Attributes:
      images: the images that agreement is measured on.
      cost: the cost model, which gets better on the way.
      evaluations: how many schedules were looked at.
    """

    def __init__(
        self, model: Any, variables: Any, images: Layerwise, cost: CostModel, families: Mapping[str, Family],
        labels: Any = None,
    ) -> None:  # fmt: skip
        self.model, self.variables, self.images, self.cost, self.families = model, variables, images, cost, families
        self.labels = None if labels is None else np.asarray(labels)
        self.patches, self.evaluations = model.geometry.num_patches, 0
        self.step = max(1, self.patches // STEPS)
        self._dense = images.outputs(None)
        if bad := np.flatnonzero(~np.isfinite(self._dense).all(axis=1)).tolist():
            raise SlimError(f"images {shown(bad)}: what the dense model says is no finite number; look at its weights")
        self._known: dict[tuple[str, Counts], np.ndarray] = {}
        self._timed: Inference | None = None
        self._plans: dict[tuple[str, Counts], Plan] = {}

    def on(self, images: Layerwise, labels: Any = None) -> Bench:
        """The same on other images."""
        return Bench(self.model, self.variables, images, self.cost, self.families, labels)

    def plan(self, name: str, counts: Counts) -> Plan:
        """The plan of a family's method at these counts."""
        if (name, counts) not in self._plans:
            self._plans[name, counts] = self.families[name].at(counts).plan
        return self._plans[name, counts]

    def ms(self, name: str, counts: Counts) -> float:
        """Milliseconds by the cost model."""
        return self.cost.ms(self.plan(name, counts), name)

    def outputs(self, name: str, counts: Counts) -> np.ndarray:
        """(n, C), remembered."""
        if (name, counts) not in self._known:
            self.evaluations += 1
            self._known[name, counts] = self.images.outputs(self.families[name], counts)
        return self._known[name, counts]

    def lost(self, name: str, counts: Counts) -> np.ndarray:
        """(n,) what each image disagrees by."""
        return self.images.disagreement(self._dense, self.outputs(name, counts))

    def disagreement(self, name: str, counts: Counts) -> float:
        """Mean over the images."""
        return float(self.lost(name, counts).mean())

    def row(self, name: str, shape: str, counts: Counts) -> Row:
        """What is told of a schedule."""
        lost = self.lost(name, counts)
        error = float(lost.std() / math.sqrt(len(lost)))
        right = None
        if self.labels is not None and self.model.num_classes:
            right = float((self.outputs(name, counts).argmax(axis=1) == self.labels).mean())
        return Row(name, shape, counts, self.ms(name, counts), float(lost.mean()), error, right)

    def fitted(self, name: str, shapes: Sequence[Shape], limit: float, step: int = 0) -> Counts | None:
        """The counts of a shape that cost `limit`; of several shapes, those of the one that is scaled least."""
        method, step = self.families[name].method, step or self.step
        make = lambda wanted: schedules.allowed(wanted, self.patches, method.fewest, step)
        made = [schedules.fitted(shape, functools.partial(self.ms, name), limit, make) for shape in shapes]
        there = [(sum(abs(a - b) for a, b in zip(c, shape(0.5), strict=True)), c)
                 for c, shape in zip(made, shapes, strict=True) if c is not None]  # fmt: skip
        return min(there)[1] if there else None

    def best(self, name: str, shapes: Mapping[str, list[Shape]], limit: float) -> tuple[Counts, float] | None:
        """Of all shapes the counts that disagree least."""
        made = {self.fitted(name, shape, limit) for shape in shapes.values()} - {None}
        return min(((c, self.disagreement(name, c)) for c in made if c), key=lambda pair: pair[1], default=None)

    def times(self, methods: Mapping[Any, Slimming], clock: Clock) -> dict[Any, float]:
        """Milliseconds of a batch of each, where the dense model takes what the cost model says."""
        return {key: statistics.median(samples) for key, samples in self._samples(methods, clock).items()}

    def _samples(self, methods: Mapping[Any, Slimming], clock: Clock) -> dict[Any, list[float]]:
        """The same, of every round."""
        if self._timed is None:
            self._timed = Inference(self.model.clone(slim=Slimming(geometry=self.model.geometry)), self.variables)
        models = {key: Inference(self.model.clone(slim=slim), self.variables) for key, slim in methods.items()}
        speeds = measure_speed(
            {"": self._timed, **models}, clock.batch_size, rounds=clock.rounds, min_seconds=clock.seconds
        )
        dense = speeds[""].seconds
        return {key: (np.divide(speeds[key].seconds, dense) * self.cost.dense).tolist() for key in methods}

    def learn_extra(
        self, names: Sequence[str], shapes: Mapping[str, list[Shape]], limit: float, clock: Clock, say: Say
    ) -> None:
        """Has the cost model know what these families' methods add, from real times of the shapes."""
        made = {(name, shape): self.fitted(name, own, limit) for name in names for shape, own in shapes.items()}
        seen = {key: counts for key, counts in made.items() if counts is not None}
        times = self.times({key: self.families[key[0]].at(counts) for key, counts in seen.items()}, clock)
        for name in names:
            plans = [(self.plan(name, counts), times[key]) for key, counts in seen.items() if key[0] == name]
            self.cost = self.cost.with_extra(name, plans)
            first, later = self.cost.extra[name]
            say(f"  {name}: adds {first:.2f} ms once, {later:.2f} ms further on")

    def meet(self, name: str, counts: Counts, limit: float, clock: Clock, say: Say) -> tuple[Counts, float]:
        """The counts scaled until their measured time is the limit's, and that time.

        A difference within two standard errors of the measured median is none: a busy machine's clock does not decide.
        """
        asked, tried, twice = limit, {}, dataclasses.replace(clock, rounds=2 * clock.rounds)
        for _ in range(4):
            samples = self._samples({name: self.families[name].at(counts)}, twice)[name]
            tried[counts] = ms = statistics.median(samples)
            error = 1.253 * 1.4826 * float(np.median(np.abs(np.subtract(samples, ms)))) / math.sqrt(len(samples))
            say(f"measured: {ms:.2f} ± {error:.2f} ms of {limit:.2f}")
            if abs(ms - limit) <= max(CLOSE * limit, 2 * error):
                return counts, ms
            asked *= limit / ms
            if asked >= self.cost.dense:  # by a time that something else disturbed: nothing would be dropped
                break
            again = self.fitted(name, [schedules.scaled(counts, self.patches)], asked, step=1)
            if again is None or again in tried:
                break
            counts = again
        counts = min(tried, key=lambda c: abs(tried[c] / limit - 1))
        return counts, tried[counts]
