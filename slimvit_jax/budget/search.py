"""Coordinate descent over the counts of the layers, at equal cost: a pure function of what costs and what is better."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from slimvit_jax.budget.schedules import Cost, Counts, Fewest, allowed, fitted

#: Whether the first counts are to take the place of the second.
Better = Callable[[Counts, Counts], bool]


def descend(
    start: Counts,
    patches: int,
    cost: Cost,
    better: Better,
    limit: float,
    fewest: Fewest,
    step: int,
    most: int,
    progress: Callable[[int, Counts], None] | None = None,
) -> tuple[Counts, int]:
    """Counts that cost no more than `limit` and are better than `start`, or `start`.

    One coordinate at a time, from the last layer to the first, a layer leaves some patches more or fewer and the layers
    behind it make up for the cost (`neighbours`); what is better is taken. The layers in front stay as they are, so
    that whoever evaluates can go on from what they gave. The stride halves when a sweep finds nothing, from an eighth
    of the patches down to `step`.

    Args:
      start: the first counts, of cost at most `limit`; they need not be multiples of `step`.
      patches: N, what the first layer takes in.
      cost: of counts.
      better: whether its first counts are to take the place of its second.
      limit: the most that counts may cost.
      fewest: of `allowed`.
      step: counts that change become multiples of it.
      most: calls of `better` at most.
      progress: called with the calls so far and the best counts.

    Returns:
      (counts, calls).
    """
    best, seen = start, {start}
    stride = max(1, patches // 8 // step)
    while stride and len(seen) <= most:
        found = False
        for layer in range(len(start), 0, -1):
            for candidate in neighbours(best, layer, stride * step, patches, cost, limit, fewest, step):
                if candidate in seen or len(seen) > most:
                    continue
                seen.add(candidate)
                if better(candidate, best):
                    best, found = candidate, True
                if progress is not None:
                    progress(len(seen) - 1, best)
        stride = stride if found and stride > 1 else stride // 2
    return best, len(seen) - 1


def neighbours(
    counts: Counts, layer: int, change: int, patches: int, cost: Cost, limit: float, fewest: Fewest, step: int
) -> Iterator[Counts]:
    """Counts of nearly the cost `limit` in which a 1-based layer leaves `change` patches fewer, or more.

    The layers behind it drop more or less in proportion to what they drop, and, as another candidate, the same number
    each: that puts drops where there were none.
    """
    front, here, tail = counts[: layer - 1], counts[layer - 1], counts[layer:]
    before = front[-1] if front else patches
    behind = lambda at, held: fewest(at + len(front), held)
    made = lambda wanted: (*front, *allowed(wanted[len(front) :], before, behind, step))
    for wanted in (here - change, here + change):
        here_now = min(max(wanted, 1), before)
        if here_now == here:
            continue
        drops = [here - n for n in tail]
        ramp = list(range(1, len(tail) + 1))
        shapes = [drops, ramp] if any(drops) and drops != ramp else [ramp]
        for offsets in shapes:
            found = fitted(_behind(front, here_now, offsets, patches), cost, limit, made)
            if found is not None and found != counts:
                yield found


def _behind(front: Counts, here: int, offsets: Sequence[float], patches: int) -> Callable[[float], list[float]]:
    largest = max(offsets, default=0) or 1
    return lambda strength: [*front, here, *(max(1.0, here - strength * here * o / largest) for o in offsets)]
