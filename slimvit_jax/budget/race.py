"""Which of two schedules disagrees less, told from as few images as it takes.

A few images make up most of every mean: those that the dense model is least sure of. So the images of a search are
drawn with a chance in proportion to what they disagree by under schedules made by hand, and weighed by its inverse,
which estimates the mean over all images without bias (Horvitz and Thompson, 1952; drawn as in Madow, 1949).
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Mapping, Sequence

import numpy as np

from slimvit_jax.budget.bench import Bench, Say
from slimvit_jax.budget.layerwise import Layerwise
from slimvit_jax.budget.schedules import Counts
from slimvit_jax.budget.search import descend

#: The least chance of an image, as a share of the mean one: what was small under one schedule need not stay so.
FLOOR = 0.1
#: How many of its standard errors a gain must be worth to count.
MARGIN = 0.5


def drawn(expected: np.ndarray, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Images that say most about a mean, and their weights in it.

    Args:
      expected: (n,) about what each image adds to the mean, at least 0.
      count: how many to draw; at least n of them are all.
      seed: of the draw.

    Returns:
      (indices, weights), both (count,): sum(weights * x[indices]) estimates mean(x) without bias.
    """
    n = len(expected)
    if count >= n:
        return np.arange(n), np.full(n, 1 / n)
    size = np.asarray(expected, np.float64)
    size = size + max(FLOOR * size.mean(), 1e-30)
    chance = np.zeros(n)
    sure = np.zeros(n, bool)
    while True:  # who would be drawn more than once is drawn surely, and leaves its place to the others
        chance = np.where(sure, 1.0, (count - sure.sum()) * size / size[~sure].sum())
        if not (over := (chance > 1) & ~sure).any():
            break
        sure |= over
    random = np.random.default_rng(seed)
    order = random.permutation(n)
    marks = np.arange(count) + random.uniform()
    places = np.minimum(np.searchsorted(np.cumsum(chance[order]), marks), n - 1)
    chosen = random.permutation(order[places])
    return chosen, 1 / (chance[chosen] * n)


class Race:
    """Compares schedules on a weighed sample of images.

    Args:
      parts: benches on parts of the sample, looked at one after the other.
      weights: of each part's images.
      margin: see `MARGIN`.
    """

    def __init__(self, parts: Sequence[Bench], weights: Sequence[np.ndarray], margin: float = MARGIN) -> None:
        self.parts, self.weights, self.margin = parts, weights, margin

    @classmethod
    def of(cls, whole: Bench, images: np.ndarray, starts: Mapping[str, Counts], count: int) -> Race:
        """On `count` of the images of `whole`, drawn by what they disagree by under these schedules of its families."""
        lost = np.mean([whole.lost(name, counts) for name, counts in starts.items()], axis=0)
        chosen, weights = drawn(lost, count)
        parts = [part for part in np.split(np.arange(len(chosen)), [-(-len(chosen) // 3)]) if len(part)]
        layers = lambda part: Layerwise(
            whole.model, whole.variables, images[chosen[part]], programs=whole.images.programs
        )
        return cls([whole.on(layers(part)) for part in parts], [weights[part] for part in parts])

    def better(self, name: str, new: Counts, old: Counts) -> bool:
        """Whether `new` disagrees less than `old`, by more than `margin` standard errors of the difference.

        What is behind after a part is given up: it would have to catch up by more than that.
        """
        total = square = 0.0
        for bench, weights in zip(self.parts, self.weights, strict=True):
            gain = weights * (bench.lost(name, old) - bench.lost(name, new))
            total, square = total + float(gain.sum()), square + float(np.square(gain).sum())
            if total <= 0:
                return False
        return total > self.margin * math.sqrt(square)

    def value(self, name: str, counts: Counts) -> float:
        """The estimate of what the schedule disagrees by, over all images."""
        pairs = zip(self.parts, self.weights, strict=True)
        return float(sum(weights @ bench.lost(name, counts) for bench, weights in pairs))

    def search(self, name: str, start: Counts, limit: float, most: int, say: Say) -> Counts:
        """Better counts of a family than `start`, at the same cost; `start` where none is found."""
        first = self.parts[0]
        told = [time.perf_counter()]

        def progress(done: int, best: Counts) -> None:
            if time.perf_counter() - told[0] > 5:
                told[0] = time.perf_counter()
                say(f"  {name}: {done} schedules of at most {most}, {self.value(name, best):.4g}")

        say(f"searches {name}, from {self.value(name, start):.4g}")
        cost, better = functools.partial(first.ms, name), functools.partial(self.better, name)
        fewest = first.families[name].method.fewest
        found, done = descend(start, first.patches, cost, better, limit, fewest, first.step, most, progress)
        say(f"  {name}: {self.value(name, found):.4g} after {done} schedules")
        return found
