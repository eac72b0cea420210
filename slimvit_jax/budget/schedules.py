"""Schedules as plain tuples: counts[t - 1] patches are left of layer t. Those made by hand, and how one is scaled.

Nothing here knows a model, a method or a clock: what a schedule costs is a function that the caller gives.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Mapping, Sequence

from slimvit_jax.plan import shrinking_counts

Counts = tuple[int, ...]
Cost = Callable[[Counts], float]
#: How few patches a 1-based layer can leave of those it takes in.
Fewest = Callable[[int, int], int]
#: A shape at a strength in [0, 1]: 0 drops nothing, and a stronger one costs less.
Shape = Callable[[float], Sequence[float]]


def allowed(wanted: Sequence[float], patches: int, fewest: Fewest, step: int = 1) -> Counts:
    """The wanted counts rounded to multiples of `step`, never growing, none below what its layer can leave.

    A count of at least `patches` stands for all of them, also where `step` does not divide them.

    >>> allowed((16, 9.6, 3, 5), 16, lambda layer, n: n // 2, step=2)
    (16, 10, 5, 4)
    """
    counts, held = [], patches
    for layer, count in enumerate(wanted, start=1):
        rounded = patches if count >= patches - step / 2 else max(1, round(count / step) * step)
        held = max(min(rounded, held), fewest(layer, held))
        counts.append(held)
    return tuple(counts)


def fitted(shape: Shape, cost: Cost, limit: float, make: Callable[[Sequence[float]], Counts]) -> Counts | None:
    """The weakest schedule of a shape that costs no more than `limit`; None where its strongest costs more.

    Args:
      shape: wanted counts by strength.
      cost: of counts.
      limit: the most they may cost.
      make: wanted counts to allowed ones.
    """
    at = lambda strength: make(shape(strength))
    if cost(at(1.0)) > limit:
        return None
    low, high = 0.0, 1.0
    for _ in range(24):
        middle = (low + high) / 2
        low, high = (low, middle) if cost(at(middle)) <= limit else (middle, high)
    return at(high)


def three_drops(patches: int, depth: int) -> Shape:
    """The same share kept after a third, seven twelfths and five sixths of the layers: 4, 7 and 10 of 12."""
    places = [max(1, round(depth * share / 12)) for share in (4, 7, 10)]

    def shape(strength: float) -> list[int]:
        left = (patches, *shrinking_counts(patches, (max(1 - strength, 1e-6),) * 3))
        return [left[sum(layer >= place for place in places)] for layer in range(1, depth + 1)]

    return shape


def even(patches: int, depth: int) -> Shape:
    """The same number goes in every layer, ToMe's constant r; up to half of the patches, while there are any."""
    return lambda strength: [max(1.0, patches * (1 - strength / 2 * layer)) for layer in range(1, depth + 1)]


def same_share(patches: int, depth: int) -> Shape:
    """The same share is kept of every layer from the end of the first quarter of them on."""
    first = max(1, round(depth / 4))
    return lambda strength: [
        max(1.0, patches * (1 - strength) ** max(0, layer - first + 1)) for layer in range(1, depth + 1)
    ]


def scaled(counts: Sequence[float], patches: int) -> Shape:
    """The shape of a schedule: at half strength what it drops in all, at full strength everything that it drops at."""

    def shape(strength: float) -> list[float]:
        times = math.tan(strength * math.pi / 2) if strength < 1 else math.inf  # 0, 1 at a half, without bound at 1
        return [max(1.0, patches - times * (patches - n)) if n < patches else patches for n in counts]

    return shape


def by_hand(patches: int, depth: int, published: Mapping[str, Sequence[float]]) -> dict[str, list[Shape]]:
    """Schedules that people use, by name; of several shapes under one name the one that is scaled least is meant.

    Args:
      patches, depth: of the model.
      published: shares of the patches left of every layer, by name.
    """
    known = [scaled([patches * share for share in shares], patches) for shares in published.values()]
    kinds = {"three drops": three_drops, "constant r": even, "constant share": same_share}
    shapes = {name: [kind(patches, depth)] for name, kind in kinds.items()}
    return shapes | ({"DiffRate's counts": known} if known else {})


def from_lives(lives: Sequence[Sequence[float]], depth: int) -> Shape:
    """How many patches of the data are still needed at every layer, as their lives say.

    A patch of life tau is computed in the layers t <= tau. The mean share of the patches alive in layer t + 1 is what
    layer t leaves; strength moves all lives: at 0 by T layers up, at 1 by T layers down.

    Args:
      lives: (images, N).
      depth: T.
    """
    patches = len(lives[0])
    ordered = sorted(life for row in lives for life in row)

    def alive(life: float) -> float:
        return patches * (1 - bisect.bisect_left(ordered, life) / len(ordered))

    return lambda strength: [max(1.0, alive(t + 1 + depth * (2 * strength - 1))) for t in range(1, depth + 1)]
