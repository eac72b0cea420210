"""Token counts as plain Python ints: the one place where a keep rate becomes numbers of tokens.

The model, the FLOPs, the benchmark, the pictures and the error checks all read a `Plan`. Nothing here touches JAX.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any

from slimvit_jax.errors import SlimError, unknown


@dataclasses.dataclass(frozen=True)
class Geometry:
    """What a slimming method must know of its backbone.

    Attributes:
      grid: rows and columns of the patch grid.
      depth: number of layers T.
      dim: token width D.
      heads: attention heads per layer.
      prefix_tokens: class, distillation and register tokens in front of the patches; never dropped.
      class_token: whether the first prefix token is a class token.
      num_classes: of the head; 0 for none.
      pyramid: the dense model's plan where the backbone itself subsamples its grid, else None.
    """

    grid: tuple[int, int]
    depth: int
    dim: int
    heads: int
    prefix_tokens: int = 1
    class_token: bool = True
    num_classes: int = 0
    pyramid: Plan | None = None

    @property
    def num_patches(self) -> int:
        """N, the number of patches."""
        return self.grid[0] * self.grid[1]


@dataclasses.dataclass(frozen=True)
class Plan:
    """Patch tokens (prefix tokens not counted) at every layer's attention and at every layer's MLP."""

    attention: tuple[int, ...]
    mlp: tuple[int, ...]

    @classmethod
    def full(cls, num_patches: int, depth: int) -> Plan:
        """The plan of the dense model."""
        return cls((num_patches,) * depth, (num_patches,) * depth)

    @classmethod
    def drop(cls, geometry: Geometry, locations: Sequence[int], counts: Sequence[int], where: str) -> Plan:
        """`counts[k]` patches are left from the k-th location on.

        Args:
          geometry: the backbone.
          locations: 1-based layers, increasing.
          counts: patches left, one per location.
          where: "before" the layer, "inside" it (between attention and MLP), or "after" it.
        """
        attention, mlp = [], []
        left = geometry.num_patches
        after = dict(zip(locations, counts, strict=True))
        for layer in range(1, geometry.depth + 1):
            if where == "before":
                left = after.get(layer, left)
            attention.append(left)
            if where == "inside":
                left = after.get(layer, left)
            mlp.append(left)
            if where == "after":
                left = after.get(layer, left)
        return cls(tuple(attention), tuple(mlp))

    @property
    def token_counts(self) -> tuple[int, ...]:
        """Patch tokens each layer takes in."""
        return self.attention


def check_keep_rate(keep_rate: Any, locations: Sequence[int] | None = None) -> tuple[float, ...]:
    """One rate per location, each in (0, 1].

    Raises:
      SlimError: for a rate outside (0, 1], not a number, or a wrong number of rates.
    """
    rates = tuple(keep_rate) if isinstance(keep_rate, (tuple, list)) else (keep_rate,) * len(locations or (0,))
    for rate in rates:
        if isinstance(rate, bool) or not isinstance(rate, Real) or not 0 < float(rate) <= 1:
            raise SlimError(f"keep_rate={keep_rate!r} must lie in (0, 1]: the share of patches kept at each location")
    if locations is not None and len(rates) != len(locations):
        raise SlimError(f"keep_rate={keep_rate!r} has {len(rates)} rates for {len(locations)} locations {locations}")
    return tuple(float(rate) for rate in rates)


def check_locations(locations: object, depth: int | None = None) -> tuple[int, ...]:
    """Increasing 1-based layers, no larger than `depth` where that is given.

    Raises:
      SlimError: for anything else.
    """
    if not isinstance(locations, (tuple, list)) or not locations:
        raise SlimError(f"locations={locations!r} must be a non-empty tuple of 1-based layers, such as (4, 7, 10)")
    if any(isinstance(layer, bool) or not isinstance(layer, Integral) for layer in locations):
        raise SlimError(f"locations={tuple(locations)} must be whole numbers: 1-based layers")
    if any(b <= a for a, b in zip(locations, locations[1:], strict=False)):
        raise SlimError(f"locations={tuple(locations)} must increase")
    if locations[0] < 1 or (depth is not None and locations[-1] > depth):
        raise SlimError(f"locations={tuple(locations)} must lie in 1..{depth if depth is not None else 'depth'}")
    return tuple(int(layer) for layer in locations)


def check_budgets(budgets: object, geometry: Geometry | None = None) -> tuple[int, ...]:
    """Patches per layer: one positive whole number a layer, never growing, starting at the number of patches.

    Raises:
      SlimError: for anything else.
    """
    if not isinstance(budgets, (tuple, list)) or not budgets:
        raise SlimError(f"budgets={budgets!r} must be a tuple with one patch count per layer")
    counts = tuple(budgets)
    if any(isinstance(n, bool) or not isinstance(n, Integral) or n < 1 for n in counts):
        raise SlimError(f"budgets={counts} must be whole numbers of at least 1")
    for layer, (a, b) in enumerate(zip(counts, counts[1:], strict=False), start=1):
        if b > a:
            raise SlimError(f"budgets={counts} must not grow: layer {layer} has {a} patches, layer {layer + 1} has {b}")
    if geometry is not None:
        if len(counts) != geometry.depth:
            raise SlimError(f"budgets={counts} has {len(counts)} entries for {geometry.depth} layers")
        if counts[0] != geometry.num_patches:
            raise SlimError(
                f"budgets={counts} must begin with the {geometry.num_patches} patches of a"
                f" {geometry.grid[0]}x{geometry.grid[1]} grid: nothing is dropped before the first layer"
            )
    return tuple(int(n) for n in counts)


def shrinking_counts(num_patches: int, rates: Sequence[float], rounding: Callable = math.ceil) -> tuple[int, ...]:
    """n_k = round(rate_k * n_{k-1}): each rate is of what the location before left (life regression, EViT).

    >>> shrinking_counts(196, (0.7, 0.7, 0.7))
    (138, 97, 68)
    """
    counts, left = [], num_patches
    for rate in rates:
        left = max(1, rounding(rate * left))
        counts.append(left)
    return tuple(counts)


def absolute_counts(num_patches: int, rates: Sequence[float]) -> tuple[int, ...]:
    """n_k = int(N * rate_1 * ... * rate_k): all rates are of the N patches of the grid (DynamicViT and others).

    >>> absolute_counts(196, (0.7, 0.7, 0.7))
    (137, 96, 67)
    """
    counts = []
    for k in range(1, len(rates) + 1):
        same = len(set(rates[:k])) == 1
        # rate**k rather than a running product: the official codes compute the power, and int() is at its mercy.
        share = rates[0] ** k if same else math.prod(rates[:k])
        counts.append(max(1, int(num_patches * share)))
    return tuple(counts)


def check_choice(kind: str, value: object, choices: Sequence[object]) -> None:
    """Raises SlimError unless `value` is one of `choices`."""
    if value not in choices:
        raise unknown(kind, value, choices)


def block_flops(attention_tokens: int, mlp_tokens: int, dim: int, hidden: int) -> int:
    """One transformer layer: qkv and output projections, the two attention products, the two MLP products."""
    return 4 * attention_tokens * dim**2 + 2 * attention_tokens**2 * dim + 2 * mlp_tokens * dim * hidden
