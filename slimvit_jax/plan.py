"""Token counts as plain Python ints: the one place where a keep rate becomes numbers of tokens.

The model, the FLOPs, the benchmark, the pictures and the error checks all read a `Plan`. Nothing here touches JAX.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from slimvit_jax.errors import SlimError
from slimvit_jax.options import Count, Share, kind_of


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
      subsamples: 1-based layers whose attention leaves every second row and column of the grid, where the backbone is a
        pyramid: then all patches must be there, at their places; None where it is none.
      mlp_hidden: hidden width of the layers' MLP; 0 where it is not one number.
    """

    grid: tuple[int, int]
    depth: int
    dim: int
    heads: int
    prefix_tokens: int = 1
    class_token: bool = True
    num_classes: int = 0
    subsamples: tuple[int, ...] | None = None
    mlp_hidden: int = 0

    @property
    def num_patches(self) -> int:
        """N, the number of patches."""
        return self.grid[0] * self.grid[1]

    @property
    def grids(self) -> tuple[tuple[int, int], ...]:
        """The grid in front of every layer, and the one at the end."""
        grids = [self.grid]
        for layer in range(1, self.depth + 1):
            grids.append(halved(grids[-1]) if layer in (self.subsamples or ()) else grids[-1])
        return tuple(grids)

    @property
    def dense_plan(self) -> Plan:
        """Patch tokens per layer where none is dropped."""
        counts = tuple(rows * columns for rows, columns in self.grids)
        return Plan(counts[:-1], counts[1:])


def halved(grid: tuple[int, int]) -> tuple[int, int]:
    """The grid of every second row and column, the first included."""
    return (grid[0] + 1) // 2, (grid[1] + 1) // 2


@dataclasses.dataclass(frozen=True)
class Plan:
    """Patch tokens (prefix tokens not counted) at every layer's attention and at every layer's MLP."""

    attention: tuple[int, ...]
    mlp: tuple[int, ...]

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
    def halves(self) -> tuple[int, ...]:
        """Patch tokens in the order they are computed: in the first layer's attention, in its MLP, and so on."""
        return tuple(n for both in zip(self.attention, self.mlp, strict=True) for n in both)

    @property
    def last_drop(self) -> int:
        """The last 1-based layer that computes fewer patches than what came before it; 0 where none does."""
        drops = [half // 2 + 1 for half, (n, left) in enumerate(itertools.pairwise(self.halves), 1) if left < n]
        return max(drops, default=0)

    def full_from(self, layer: int, num_patches: int) -> Plan:
        """The same with all patches from this 1-based layer on."""
        back = lambda counts: counts[: layer - 1] + (num_patches,) * (len(counts) - layer + 1)
        return Plan(back(self.attention), back(self.mlp))

    @property
    def token_counts(self) -> tuple[int, ...]:
        """Patch tokens each layer takes in."""
        return self.attention


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Which share of the patches is left at which layers: what keep rates mean for a method, as a plan.

    Attributes:
      keep_rate: share left at each location of what the location before left; one for all, or one each.
      locations: 1-based layers, increasing.
      where: the patches go "before" the layer, "inside" it (between attention and MLP), or "after" it.
      of: "left": n_k = ceil(r_k n_{k-1}); "grid": n_k = int(r_1 ... r_k N), of the N patches of the grid.
      token_ratio: the shares of the N patches left at each location, in place of keep_rate.

    Raises:
      SlimError: for values that make no schedule.
    """

    keep_rate: float | tuple[float, ...]
    locations: tuple[int, ...]
    where: str = "inside"
    of: str = "grid"
    token_ratio: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        check_locations(self.locations)
        if self.token_ratio is None:
            check_keep_rate(self.keep_rate, self.locations)
            return
        ratios = kind_of(tuple[Share, ...]).value("token_ratio", self.token_ratio)
        if len(ratios) != len(self.locations):
            raise SlimError(
                f"token_ratio={ratios} must hold one share of the original patches for each of the"
                f" {len(self.locations)} locations {self.locations}"
            )
        if any(b > a for a, b in itertools.pairwise(ratios)):
            raise SlimError(f"token_ratio={ratios} must not grow: dropped patches do not come back")

    @property
    def rates(self) -> tuple[float, ...]:
        """The keep rate of every location."""
        return check_keep_rate(self.keep_rate, self.locations)

    @property
    def shares(self) -> tuple[float, ...]:
        """The share of the original patches left at each location: keep rates multiplied up, or the token ratios."""
        return cumulative(self.rates) if self.token_ratio is None else self.token_ratio

    def counts(self, num_patches: int) -> tuple[int, ...]:
        """Patches left at each location, of `num_patches` in the grid."""
        if self.of == "left":
            return shrinking_counts(num_patches, self.rates)
        return tuple(max(1, int(num_patches * share)) for share in self.shares)

    def plan(self, geometry: Geometry) -> Plan:
        """The plan on a backbone; a SlimError for a location that it does not have."""
        check_locations(self.locations, geometry.depth)
        return Plan.drop(geometry, self.locations, self.counts(geometry.num_patches), self.where)


def check_keep_rate(keep_rate: Any, locations: Sequence[int] | None = None) -> tuple[float, ...]:
    """One rate per location, each in (0, 1].

    Raises:
      SlimError: for a rate outside (0, 1], not a number, or a wrong number of rates.
    """
    given = kind_of(Share | tuple[Share, ...]).value("keep_rate", keep_rate)
    rates = given if isinstance(given, tuple) else (given,) * len(locations or (0,))
    if locations is not None and len(rates) != len(locations):
        raise SlimError(f"keep_rate={keep_rate!r} has {len(rates)} rates for {len(locations)} locations {locations}")
    return rates


def check_locations(locations: object, depth: int | None = None, name: str = "locations") -> tuple[int, ...]:
    """Increasing 1-based layers, no larger than `depth` where that is given; `name` is the option's.

    Raises:
      SlimError: for anything else.
    """
    layers: tuple[int, ...] = kind_of(tuple[int, ...]).value(name, locations)
    if not layers:
        raise SlimError(f"{name}=() must be a non-empty tuple of 1-based layers, such as (4, 7, 10)")
    if any(b <= a for a, b in itertools.pairwise(layers)):
        raise SlimError(f"{name}={layers} must increase")
    if layers[0] < 1 or (depth is not None and layers[-1] > depth):
        raise SlimError(f"{name}={layers} must lie in 1..{depth if depth is not None else 'depth'}")
    return layers


def check_layers(layers: object, depth: int, name: str) -> tuple[int, ...]:
    """1-based layers in any order, from anything that has several; `name` is the argument's.

    Raises:
      SlimError: for anything else.
    """
    if isinstance(layers, Iterable) and not isinstance(layers, str | Mapping):
        layers = tuple(layers)
    found: tuple[int, ...] = kind_of(tuple[int, ...]).value(name, layers)
    if not all(1 <= layer <= depth for layer in found):
        raise SlimError(f"{name}={found} must lie in 1..{depth}")
    return found


def check_budgets(budgets: object, geometry: Geometry | None = None) -> tuple[int, ...]:
    """Patches per layer: one positive whole number a layer, never growing, starting at the number of patches.

    Raises:
      SlimError: for anything else.
    """
    counts: tuple[int, ...] = kind_of(tuple[Count, ...]).value("budgets", budgets)
    if not counts:
        raise SlimError("budgets=() must be a tuple with one patch count per layer")
    for layer, (a, b) in enumerate(itertools.pairwise(counts), start=1):
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
    return counts


def shrinking_counts(num_patches: int, rates: Sequence[float]) -> tuple[int, ...]:
    """n_k = ceil(rate_k * n_{k-1}): each rate is of what the location before left (life regression, EViT).

    >>> shrinking_counts(196, (0.7, 0.7, 0.7))
    (138, 97, 68)
    """
    counts, left = [], num_patches
    for rate in rates:
        left = max(1, math.ceil(rate * left))
        counts.append(left)
    return tuple(counts)


def cumulative(rates: Sequence[float]) -> tuple[float, ...]:
    """r_1 ... r_k for every k.

    >>> cumulative((0.5, 0.5, 0.1))
    (0.5, 0.25, 0.025)
    """
    shares: list[float] = []
    for k in range(1, len(rates) + 1):
        same = len(set(rates[:k])) == 1
        # rate**k rather than a running product: the official codes compute the power, and int() is at its mercy.
        shares.append(rates[0] ** k if same else math.prod(rates[:k]))
    return tuple(shares)


def block_flops(attention_tokens: int, mlp_tokens: int, dim: int, hidden: int) -> int:
    """One transformer layer: qkv and output projections, the two attention products, the two MLP products."""
    return 4 * attention_tokens * dim**2 + 2 * attention_tokens**2 * dim + 2 * mlp_tokens * dim * hidden
