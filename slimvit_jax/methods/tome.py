"""ToMe (Bolya et al. 2023, "Token Merging: Your ViT But Faster"): similar tokens become one. Needs no training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Annotated, Any, ClassVar

import jax.numpy as jnp

from slimvit_jax.errors import SlimError
from slimvit_jax.facts import Facts
from slimvit_jax.methods.merging import Merging, removed
from slimvit_jax.ops import merge
from slimvit_jax.options import Kind, Natural, Range, Share, kind_of
from slimvit_jax.plan import Geometry, Plan
from slimvit_jax.slimming import Probe
from slimvit_jax.tokens import Tokens


def _is_inflected(r: object) -> bool:
    return isinstance(r, (tuple, list)) and len(r) == 2 and isinstance(r[1], Real) and not isinstance(r[1], Integral)


def _read_r(r: Any) -> int | tuple[float, ...]:
    """Official: a list is per layer, a tuple of two is (r, inflect). Configs and JSON blur that; a float does not."""
    whole = kind_of(tuple[Natural, ...])
    if not isinstance(r, (tuple, list)):
        return whole.read((r,))[0]
    if len(r) == 2 and (isinstance(r, tuple) or _is_inflected(r)):
        return kind_of(tuple[Natural, Annotated[float, Range(least=-1, most=1)]]).read(r)
    if not r:
        raise ValueError(r)
    return whole.read(r) + (0,) * (len(r) == 2)


R = Annotated[
    int | tuple[float, ...],
    Kind(
        "be a whole number of at least 0, (r, inflect) with a float inflect in [-1, 1], or one whole number per layer",
        _read_r,
    ),
]


class ToMe(Merging, kw_only=True):
    """In every layer, between attention and MLP, the r most similar pairs of a bipartite matching are merged.

        metric = 1/H sum_h k_h (before any q/k norm),  A = even positions, B = odd ones, similarity = cosine
        x_j   <- (s_j x_j + sum_i s_i x_i) / (s_j + sum_i s_i),  s_j <- s_j + sum_i s_i      over the i merged into j
        attention = softmax(q k^T / sqrt(d) + log s)                                       (proportional attention)

    Official: tome/merge.py, tome/patch/timm.py, tome/utils.py (parse_r). Prefix tokens are never merged. No more than
    half of the patch tokens can be merged in a layer: an r above that at the first layer is refused, later layers
    merge what they can, as released. Average pooling weighs the tokens by their size, as in the official patch of MAE.
    Training merges as inference does; no gradient flows through the choice.

    Deviations: registers are protected like class and distillation token (the release knows none); a zero key
    vector is unlike everything instead of NaN. Cost: |A| |B| d for the similarities and 3 D r |B| at most for the
    merges, in every layer that merges.

    Attributes:
      r: tokens merged per layer: a whole number; or (r, inflect) with a float inflect, which goes linearly from
        r (1 - inflect) to r (1 + inflect) over the layers; or one number per layer (missing ones are 0).
      keep_rate: in place of r: the share of the N patches that a layer computes on average; the constant r that comes
        nearest is used.
      prop_attn: proportional attention.
    """

    method = "tome"
    facts = Facts(
        source="Bolya et al. 2023, facebookresearch/ToMe",
        cost="|A| |B| d + 3 r D per layer",
        training_free=True,
        grid="merged",
        where="inside, every layer",
    )

    untrained: ClassVar[tuple[Mapping[str, Any], ...]] = ({},)

    r: R = 8
    keep_rate: Share | None = None
    prop_attn: bool = True

    def check_geometry(self, geometry: Geometry) -> None:
        super().check_geometry(geometry)
        wanted, most = self._wanted(geometry), merge.most_merges(geometry.num_patches, 0)
        if len(wanted) > geometry.depth:
            raise SlimError(f"r={self.r!r} has {len(wanted)} entries for {geometry.depth} layers")
        if max(wanted) > most:
            raise SlimError(
                f"r={self.r!r} merges {max(wanted)} tokens in a layer, but no more than half of the"
                f" {geometry.num_patches} patches can be merged at once; r must lie in 0..{most}"
            )

    def at_counts(self, counts: Sequence[int]) -> dict[str, Any]:
        others = {} if self.keep_rate is None else {"keep_rate": None}
        return {**others, "r": removed(self.bound.num_patches, counts)}

    def _wanted(self, geometry: Geometry) -> tuple[int, ...]:
        """r of every layer, not yet clamped."""
        if self.keep_rate is not None:
            return (_nearest_r(geometry, self.keep_rate),) * geometry.depth
        return per_layer(self.r, geometry.depth)

    @property
    def plan(self) -> Plan:
        return _plan(self.bound, self._wanted(self.bound))

    def extra_flops(self) -> dict[int, int]:
        dim, prefix = self.bound.dim, self.bound.prefix_tokens
        return {layer: merge.pairs(n + prefix) * self.width + 3 * r * dim for layer, n, r in self.merging}

    @property
    def width(self) -> int:
        """Channels of the metric."""
        return self.bound.dim // self.bound.heads

    def after_attention(self, tokens: Tokens, layer: int, probe: Probe, train: bool) -> Tokens:
        r = self.merged[layer - 1]
        if not r:
            return tokens
        matching = merge.bipartite_soft_matching(self.metric(probe, layer), r, tokens.prefix)
        assert matching is not None  # r > 0 is what the plan allows
        x, size = merge.merge_weighted(matching, tokens.x, tokens.memory["size"])
        tokens = self.reduced(tokens, matching, x, size)
        return tokens.replace(log_weight=jnp.log(size)) if self.prop_attn else tokens


def per_layer(r: int | Sequence[float], depth: int) -> tuple[int, ...]:
    """One r per layer.

    >>> per_layer(8, 3), per_layer((8, -1.0), 3), per_layer((4, 2, 1, 1), 6)
    ((8, 8, 8), (16, 8, 0), (4, 2, 1, 1, 0, 0))
    """
    if isinstance(r, (tuple, list)) and not _is_inflected(r):
        return tuple(int(v) for v in r) + (0,) * (depth - len(r))
    middle, inflect = r if isinstance(r, (tuple, list)) else (r, 0.0)
    first = int(middle * (1.0 - inflect))
    step = (2 * middle - 2 * first) / max(1, depth - 1)
    return tuple(int(first + step * i) for i in range(depth))


def _plan(geometry: Geometry, wanted: Sequence[int]) -> Plan:
    attention, mlp, n = [], [], geometry.num_patches
    for r in wanted:
        attention.append(n)
        n -= min(r, merge.most_merges(n, 0))
        mlp.append(n)
    return Plan(tuple(attention), tuple(mlp))


def _nearest_r(geometry: Geometry, rate: float) -> int:
    wanted = rate * geometry.num_patches * geometry.depth
    candidates = range(merge.most_merges(geometry.num_patches, 0) + 1)
    return min(candidates, key=lambda r: abs(sum(_plan(geometry, (r,) * geometry.depth).mlp) - wanted))
