"""Coordinate descent over the counts of the layers, at equal cost: a pure function of what costs and what disagrees."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from slimvit_jax.budget.schedules import Cost, Counts, Fewest, allowed, fitted

Disagreement = Callable[[Counts], float]


def descend(
    start: Counts,
    patches: int,
    cost: Cost,
    disagreement: Disagreement,
    limit: float,
    fewest: Fewest,
    step: int,
    most: int,
    progress: Callable[[int, float], None] | None = None,
) -> tuple[Counts, float, int]:
    """Counts that cost no more than `limit` and disagree less than `start`.

    One coordinate at a time, from the last layer to the first, a layer leaves some patches more or fewer and the layers
    behind it make up for the cost (`neighbours`); what disagrees less is taken. The layers in front stay as they are,
    so that whoever evaluates can go on from what they gave. The stride halves when a sweep finds nothing, from an
    eighth of the patches down to `step`.

    Args:
      start: the first counts, of cost at most `limit`.
      patches: N, what the first layer takes in.
      cost, disagreement: of counts; the lower the better.
      limit: the most that counts may cost.
      fewest: of `allowed`.
      step: counts are multiples of it.
      most: evaluations of `disagreement` at most.
      progress: called with the evaluations so far and the least disagreement.

    Returns:
      (counts, their disagreement, evaluations).
    """
    best, value, seen = start, disagreement(start), {start}
    stride = max(1, patches // 8 // step)
    while stride and len(seen) < most:
        found = False
        for layer in range(len(start), 0, -1):
            for candidate in neighbours(best, layer, stride * step, patches, cost, limit, fewest, step):
                if candidate in seen or len(seen) >= most:
                    continue
                seen.add(candidate)
                if (new := disagreement(candidate)) < value:
                    best, value, found = candidate, new, True
                if progress is not None:
                    progress(len(seen), value)
        stride = stride if found and stride > 1 else stride // 2
    return best, value, len(seen)


def neighbours(
    counts: Counts, layer: int, change: int, patches: int, cost: Cost, limit: float, fewest: Fewest, step: int
) -> Iterator[Counts]:
    """Counts of nearly the cost `limit` in which a 1-based layer leaves `change` patches fewer, or more.

    The layers behind it drop more or less in proportion to what they drop, and, as another candidate, the same number
    each: that puts drops where there were none.
    """
    front, here, tail = counts[: layer - 1], counts[layer - 1], counts[layer:]
    before = front[-1] if front else patches
    for wanted in (here - change, here + change):
        here_now = min(max(wanted, 1), before)
        if here_now == here:
            continue
        made = lambda counts: allowed(counts, patches, fewest, step)
        drops = [here - n for n in tail]
        ramp = list(range(1, len(tail) + 1))
        shapes = [drops, ramp] if any(drops) and drops != ramp else [ramp]
        for offsets in shapes:
            found = fitted(_behind(front, here_now, offsets, patches), cost, limit, made)
            if found is not None and found[: layer - 1] == front and found != counts:
                yield found


def _behind(front: Counts, here: int, offsets: Sequence[float], patches: int) -> Callable[[float], list[float]]:
    largest = max(offsets, default=0) or 1
    return lambda strength: [*front, here, *(max(1.0, here - strength * here * o / largest) for o in offsets)]
