"""What the methods share that merge tokens of an image with one another."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Annotated, Any

import jax.numpy as jnp
from jax import Array

from slimvit_jax.errors import SlimError
from slimvit_jax.ops import merge
from slimvit_jax.options import Range, Share
from slimvit_jax.plan import Geometry, Plan
from slimvit_jax.slimming import Probe, Slimming
from slimvit_jax.tokens import Tokens


class Merging(Slimming, kw_only=True):
    """Merges tokens inside layers, and keeps account of what each token is made of.

    aux.taps: "owner" (B, P + N) int32, for every original token (prefix tokens first) the position among the tokens at
    the end of the one that it is part of, -1 where it was dropped; "owners", the same after every merge; "size"
    (B, P + n) float32, how much each token counts, of methods that weigh by it. What nobody reads is not computed.

    Attributes:
      track_source: tap "source" (B, P + n, P + N) uint8: which original tokens each token at the end is made of.
    """

    merges = True

    track_source: bool = False

    @property
    def merged(self) -> tuple[int, ...]:
        """Tokens that go inside every layer."""
        return tuple(a - m for a, m in zip(self.plan.attention, self.plan.mlp, strict=True))

    @property
    def merging(self) -> list[tuple[int, int, int]]:
        """(layer, patches that it takes in, tokens that go inside), of the layers that merge."""
        layers = enumerate(zip(self.plan.attention, self.merged, strict=True), start=1)
        return [(layer, n, r) for layer, (n, r) in layers if r]

    def needs(self, layer: int, train: bool) -> tuple[str, ...]:
        return ("keys",) if self.merged[layer - 1] else ()

    def metric(self, probe: Probe, layer: int) -> Array:
        """(B, P + n, C) float32, what the tokens are matched by: the keys of the heads, averaged."""
        return probe["keys"].astype(jnp.float32).mean(axis=2)

    def fewest(self, layer: int, patches: int) -> int:
        return patches - merge.most_merges(patches, 0)

    def start(self, tokens: Tokens, train: bool) -> Tokens:
        batch, length, _ = tokens.x.shape
        owner = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (batch, length))
        return tokens.remember(owner=owner, size=jnp.ones((batch, length), jnp.float32))

    def reduced(self, tokens: Tokens, matching: merge.Matching, x: Array, size: Array | None = None) -> Tokens:
        """The tokens after a matching: `x` (B, P + k, D) of `size` (B, P + k), by default the sum of the sizes."""
        size = merge.merge_sum(matching, tokens.memory["size"]) if size is None else size
        origin = merge.merge_origin(matching, tokens.per_token(tokens.origin, -1))[:, tokens.prefix :]
        owner = merge.merge_owner(matching, tokens.memory["owner"])
        position = tokens.placed(lambda places: merge.merge_patches(matching, places, tokens.memory["size"]))
        tokens = tokens.replace(x=x, origin=origin, position=position).remember(size=size, owner=owner)
        return tokens.tap("owners", owner)

    def finish(self, tokens: Tokens, train: bool) -> Tokens:
        taps = {**tokens.taps, "size": tokens.memory["size"]}
        if "owner" in tokens.memory:  # else nobody has become a part of another one for good
            taps["owner"] = tokens.memory["owner"]
            if self.track_source:
                taps["source"] = merge.membership(taps["owner"], tokens.x.shape[1])
        return tokens.replace(taps=taps)

    def pooling_weights(self, tokens: Tokens, train: bool) -> Array | None:
        if not any(self.merged):
            return None
        size = tokens.memory["size"][:, tokens.prefix :]
        return size / size.sum(axis=1, keepdims=True)


def removed(patches: int, counts: Sequence[int]) -> tuple[int, ...]:
    """How many tokens go in every layer, where so many are left of it.

    >>> removed(16, (12, 12, 7))
    (4, 0, 5)
    """
    return tuple(before - after for before, after in zip((patches, *counts), counts, strict=False))


#: Below, more than half of the tokens would have to go.
Ratio = Annotated[float, Range(least=0.5, most=1)]


class RatioMerging(Merging, kw_only=True):
    """Every layer keeps the same share of the tokens that it takes in: r = floor(T - ratio T) of T tokens go.

    Attributes:
      ratio: the share, in [0.5, 1]; one for all layers or one per layer.
      keep_rate: in place of ratio: the share of the N patches that a layer computes on average; the ratio that comes
        nearest is used.
    """

    untrained = ({},)

    ratio: Ratio | tuple[Ratio, ...] = 0.9125
    keep_rate: Share | None = None

    def check_geometry(self, geometry: Geometry) -> None:
        super().check_geometry(geometry)
        if isinstance(self.ratio, tuple) and len(self.ratio) != geometry.depth:
            raise SlimError(f"ratio={self.ratio} has {len(self.ratio)} entries for {geometry.depth} layers")

    def at_counts(self, counts: Sequence[int]) -> dict[str, Any]:
        others = {} if self.keep_rate is None else {"keep_rate": None}
        totals = (n + self.counted(self.bound) for n in (self.bound.num_patches, *counts))
        gone = removed(self.bound.num_patches, counts)
        ratios = (max(0.5, 1 - (r + 0.5) / total) if r else 1.0 for r, total in zip(gone, totals, strict=False))
        return {**others, "ratio": tuple(round(ratio, 6) for ratio in ratios)}

    def counted(self, geometry: Geometry) -> int:
        """How many prefix tokens count among the T."""
        return 0

    @property
    def plan(self) -> Plan:
        extra = self.counted(self.bound)
        if self.keep_rate is None:
            return _ratio_plan(self.bound, self.ratio, extra)
        return _nearest_ratio_plan(self.bound, self.keep_rate, extra)


@functools.lru_cache(maxsize=256)
def _ratio_plan(geometry: Geometry, ratio: float | tuple[float, ...], extra: int) -> Plan:
    attention, mlp, n = [], [], geometry.num_patches
    for each in ratio if isinstance(ratio, tuple) else (ratio,) * geometry.depth:
        attention.append(n)
        total = n + extra
        n -= min(math.floor(total - total * each), merge.most_merges(n, 0))
        mlp.append(n)
    return Plan(tuple(attention), tuple(mlp))


@functools.lru_cache(maxsize=256)
def _nearest_ratio_plan(geometry: Geometry, rate: float, extra: int) -> Plan:
    plans = (_ratio_plan.__wrapped__(geometry, 1 - step / 2000, extra) for step in range(1001))
    return min(plans, key=lambda plan: abs(sum(plan.mlp) - rate * geometry.num_patches * geometry.depth))
