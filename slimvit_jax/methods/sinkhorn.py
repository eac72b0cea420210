"""Sinkhorn clustering (Haurum et al. 2023): tokens are soft-assigned to learned centers by optimal transport."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from slimvit_jax.facts import Facts
from slimvit_jax.methods.clustering import SoftClustering
from slimvit_jax.ops import cluster, elementwise, select
from slimvit_jax.options import Count, Positive


def unit_rows(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """Initial centers: uniform on the sphere."""
    return elementwise.unit(jax.random.normal(key, shape, dtype))


class TransportLayer(nn.Module):
    """One location's centers.

    Attributes:
      count: m, the number of centers.
      regularisation: the scores are divided by it.
      iterations: of Sinkhorn.
    """

    count: int
    regularisation: float
    iterations: int

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        """(B, n, D) tokens to (B, m, D) in their dtype and the assignment (B, m, n) float32."""
        raw = self.param("v", unit_rows, (self.count, x.shape[-1]), jnp.float32)
        centers = select.straight_through(elementwise.unit(raw), raw)
        unit = elementwise.unit(x)
        scores = jnp.einsum("md,bnd->bmn", centers, unit) / self.regularisation
        weights = cluster.sinkhorn(scores, self.iterations)
        return jnp.einsum("bmn,bnd->bmd", weights.astype(x.dtype), unit.astype(x.dtype)), weights


class Sinkhorn(SoftClustering, kw_only=True):
    """In front of a location every token is shared out among m learned centers; a center's sum is a new token.

        s_ki = <v_k / |v_k|, x_i / |x_i|> / eps
        P    = (m + n) exp(s + u + w),  u, w from a few Sinkhorn rounds to the marginals 1 / (m + n)
        x'_k = sum_i P_ki x_i / |x_i|                                           m = int(r^k N) at the k-th location

    Paper: Haurum et al. 2023, "Which Tokens to Use?", after Roy et al.'s optimal-transport clustering; official file:
    models/sinkhorn.py (TokenReduction), whose blocks 3, 6, 9 are the locations (4, 7, 10) here: the reduction stands
    in front of that layer. The normalised tokens are what is averaged, and the result is not normalised again; every
    token gives away a total of exactly 1 after the last round.

    Deviations: the release overwrites v by its normalised value in every forward pass, outside autograd; here v is
    left as it is and the gradient of the normalised centers is passed on to it unchanged, which gives the same
    gradient. `clusters` of one budget fit no other: v has m rows, so a keep rate is fixed by the weights. Keeping
    every token still mixes them. Imposed scores have no meaning here and are ignored.

    Cost per location: 2 m n D for scores and sums; 2 m n exponentials a round are not counted. When: all tokens
    should keep some influence and the budget is known before training.

    Attributes:
      keep_rate: share left at each location of what the location before left; a float or one per location.
      locations: 1-based layers in front of which tokens are merged.
      sinkhorn_eps: eps above, the regularisation: small makes the assignment hard.
      cluster_iters: Sinkhorn rounds.
    """

    method = "sinkhorn"
    facts = Facts(
        source="Haurum et al. 2023, JoakimHaurum/TokenReduction",
        cost="2 m n D per location",
        learns="m D per location",
        grid="merged",
        where="before",
    )

    sinkhorn_eps: Positive = 1.0
    cluster_iters: Count = 3

    def setup(self) -> None:
        self.cluster_layers = [TransportLayer(m, self.sinkhorn_eps, self.cluster_iters) for m in self.counts]
