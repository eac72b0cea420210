"""ATS (Fayyaz et al. 2022, "Adaptive Token Sampling for Efficient Vision Transformers"): each image its own number."""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from slimvit_jax.facts import Facts
from slimvit_jax.methods.dropping import Dropping
from slimvit_jax.methods.located import Located
from slimvit_jax.methods.ranking import noted, ranking
from slimvit_jax.ops import cluster
from slimvit_jax.ops.squeeze import squeeze_flops
from slimvit_jax.plan import Plan
from slimvit_jax.slimming import Probe
from slimvit_jax.tokens import Tokens

#: Log weight of a padded key: far below any logit, and finite in float16 too.
PADDED = -3e4


class ATS(Dropping, Located, kw_only=True):
    """Inside a location patches are drawn at evenly spaced quantiles of their significance; repeated draws cost none.

        s_i   = sum_h softmax(q_cls K^T / sqrt(d))_hi |v_hi|,   cdf_i = sum_{j <= i} s_j / (sum_j s_j + 1e-6)
        drawn = for q = 1/2K, 3/2K, ... the patch of nearest cdf_i,   K = int(r^k N) + 1 at the k-th location
        kept  = the distinct ones, in raster order

    "At layer t" means inside layer t: between its attention and its MLP, with official file models/ats.py
    (TokenReduction) and its blocks 3, 6, 9 for the locations (4, 7, 10). There only the query rows drawn are computed;
    a row does not depend on the others, so dropping it afterwards is the same.

    An image keeps at most K - 1 patches (K for the few K where the float range of quantiles is one longer). The
    release pads a batch to its longest sample; here every batch has the static maximum, the rest of the rows being
    dropped patches that no later layer attends to. `aux.kept` has -1 there. Deviation: the release raises the cdf of
    padded rows by 0.1, so that they are (practically) never drawn again; here they never are. So results do not depend
    on the padded length, hence not on the other images of a batch, and otherwise equal the release's.

    Prefix tokens beside the class token are always kept and take no part. Without class token the row of attention is
    what patches receive, see `Slimming.needs`. Training draws as inference does, without
    gradient through the draw. Imposed scores replace s; negative ones count as 0. Keeping everything is not possible:
    repeated draws drop something at keep_rate 1 too. Cost per location: (P + n) D for the class token's row and n D
    for the norms; as shapes are static an easy image is not faster than a hard one. When: as a baseline for adaptive
    budgets; `aux.kept` says how many tokens an image asked for.

    Attributes:
      keep_rate: share drawn at most at each location, of what the location before drew at most; a float or one each.
      locations: 1-based layers inside which patches are dropped.
      squeeze, squeeze_temperature: what becomes of the dropped, see `Dropping`.
    """

    method = "ats"
    facts = Facts(
        source="Fayyaz et al. 2022, JoakimHaurum/TokenReduction",
        cost="(P + 2 n) D per location",
        training_free=True,
        shapes="static, padded to the most",
    )
    untrained = ({},)
    keep_all_is_dense: ClassVar[bool] = False

    @property
    def points(self) -> dict[int, np.ndarray]:
        """Location to the quantiles drawn there."""
        most = zip(self.locations, self.counts, strict=True)
        return {layer: cluster.quantiles(m + 1) for layer, m in most}

    @property
    def dropping_plan(self) -> Plan:
        counts, left = [], self.bound.num_patches
        for points in self.points.values():
            left = min(left, len(points))
            counts.append(left)
        return Plan.drop(self.bound, self.locations, counts, "inside")

    def extra_flops(self) -> dict[int, int]:
        dim, prefix, plan = self.bound.dim, self.bound.prefix_tokens, self.plan
        costs = {t: (prefix + 2 * plan.attention[t - 1]) * dim for t in self.locations}
        if self.squeeze:  # which rows are free is not known beforehand: all are guests
            for t in self.locations:
                costs[t] += squeeze_flops(plan.mlp[t - 1], plan.attention[t - 1], dim)
        return self.with_rejoin_flops(costs)

    def needs(self, layer: int, train: bool) -> tuple[str, ...]:
        return ("class_attention", "values") if layer in self.locations else ()

    def after_attention(self, tokens: Tokens, layer: int, probe: Probe, train: bool) -> Tokens:
        if layer not in self.locations:
            return tokens
        attention = probe["class_attention"][:, :, tokens.prefix :]
        norms = jnp.linalg.norm(probe["values"][:, tokens.prefix :].astype(jnp.float32), axis=-1)
        score = jnp.einsum("bhn,bnh->bn", attention, norms)
        score = jnp.maximum(ranking(tokens, jax.lax.stop_gradient(score)), 0.0)
        tokens = noted(tokens, score)
        there = self._there(tokens)
        score = jnp.where(there, score, 0.0)
        cdf = jnp.cumsum(score / (score.sum(axis=1, keepdims=True) + 1e-6), axis=1)
        before = tokens
        index, drawn = cluster.sample_by_quantiles(cdf, self.points[layer], there, self.plan.mlp[layer - 1])
        tokens = tokens.take(index)
        if self.squeeze:
            again = (index[:, None] == jnp.arange(before.n)[None, :, None]) & drawn[:, None]  # (B, n, K)
            tokens = self.absorb(tokens, before, (there & ~again.any(axis=-1)).astype(jnp.float32), drawn)
        tokens = tokens.replace(
            origin=jnp.where(drawn, tokens.origin, -1),
            log_weight=tokens.per_token(jnp.where(drawn, 0.0, PADDED), 0.0),
        )
        # As many rows as before, though some are padding now: the encoder would not note it.
        return tokens if tokens.n < before.n else tokens.replace(kept=(*tokens.kept, tokens.origin))

    def _there(self, tokens: Tokens) -> Array:
        """(B, n) bool: not padding."""
        return tokens.origin >= 0

    def pooling_weights(self, tokens: Tokens, train: bool) -> Array | None:
        there = self._there(tokens) * tokens.patch_sizes
        return there / there.sum(axis=1, keepdims=True)
