"""Coordinate descent over schedules of equal cost: a pure function of what costs and what is better.

A schedule is a staircase: the layers at which patches go, and how many are left there. One drop at a time comes a layer
earlier or later, leaves more or fewer patches, or becomes two; another one makes up for the cost, to a single patch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from slimvit_jax.budget.schedules import Cost, Counts, Fewest, allowed

#: Whether the first counts are to take the place of the second.
Better = Callable[[Counts, Counts], bool]
#: 1-based layers and the patches left of each, both strictly monotonic.
Drops = tuple[tuple[int, int], ...]
#: What of the cost a neighbour may leave over: less is less than a patch in all layers.
SLACK = 0.005


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

    From the last drop to the first its `neighbours` are looked at, and what is better is taken. The change of a count
    halves when a sweep finds nothing, from an eighth of the patches down to `step`.

    Args:
      start: the first counts, of cost at most `limit`.
      patches: N, what the first layer takes in.
      cost: of counts.
      better: whether its first counts are to take the place of its second.
      limit: the most that counts may cost.
      fewest: of `allowed`.
      step: the least change of a count.
      most: calls of `better` at most.
      progress: called with the calls so far and the best counts.

    Returns:
      (counts, calls).
    """
    best, seen, change = start, {start}, max(step, patches // 8)
    while change >= step and len(seen) <= most:
        found = False
        for index in range(len(start), -1, -1):
            for candidate in neighbours(best, index, change, patches, cost, limit, fewest):
                if candidate in seen or len(seen) > most:
                    continue
                seen.add(candidate)
                if better(candidate, best):
                    best, found = candidate, True
                if progress is not None:
                    progress(len(seen) - 1, best)
        change = change if found else change // 2
    return best, len(seen) - 1


def drops_of(counts: Sequence[int], patches: int) -> Drops:
    """Where patches go, and how many are left.

    >>> drops_of((16, 12, 12, 5), 16)
    ((2, 12), (4, 5))
    """
    pairs = zip((patches, *counts), counts, strict=False)
    return tuple((layer, after) for layer, (before, after) in enumerate(pairs, start=1) if after < before)


def neighbours(
    counts: Counts, index: int, change: int, patches: int, cost: Cost, limit: float, fewest: Fewest
) -> Iterator[Counts]:
    """Counts of the cost `limit`, nearly, in which the drop number `index` is another one; none where there is none."""
    drops, depth = drops_of(counts, patches), len(counts)
    for changed, touched in _changed(drops, index, change, patches, depth):
        for other in sorted(range(len(changed)), key=lambda i: abs(i - index)):
            if other == touched:
                continue
            low = changed[other + 1][1] if other + 1 < len(changed) else 1
            high = changed[other - 1][1] if other else patches
            made = lambda level, drops=changed, i=other: allowed(
                _staircase((*drops[:i], (drops[i][0], level), *drops[i + 1 :]), patches, depth), patches, fewest
            )
            found = _costliest(made, low, high, cost, limit)
            if found is not None and found != counts:
                yield found


def _changed(drops: Drops, index: int, change: int, patches: int, depth: int) -> Iterator[tuple[Drops, int | None]]:
    """Drops with one moved, changed, or made two; and the index whose count is meant to stay as it is then."""
    if index >= len(drops):
        return
    (layer, level), front, behind = drops[index], drops[:index], drops[index + 1 :]
    before, after = front[-1] if front else (0, patches), behind[0] if behind else (depth + 1, 0)
    for place in (layer - 1, layer + 1):
        if before[0] < place < after[0]:
            yield (*front, (place, level), *behind), None
    for count in (level - change, level + change):
        if after[1] < count < before[1]:
            yield (*front, (layer, count), *behind), index
    if after[0] - layer > 1:  # a smaller drop here, and the rest of it half way to the next one
        parts = (layer, (before[1] + level) // 2), ((layer + after[0]) // 2, level)
        yield (*front, *parts, *behind), None
    if len(drops) > 1:
        yield (*front, *behind), None


def _staircase(drops: Drops, patches: int, depth: int) -> list[int]:
    counts = [patches] * depth
    for layer, level in drops:
        counts[layer - 1 :] = [level] * (depth - layer + 1)
    return counts


def _costliest(made: Callable[[int], Counts], low: int, high: int, cost: Cost, limit: float) -> Counts | None:
    """The counts of the highest level whose cost is within the limit, where they come near it."""
    if cost(made(low)) > limit:
        return None
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if cost(made(middle)) <= limit else (low, middle - 1)
    return made(low) if cost(made(low)) >= (1 - SLACK) * limit else None
