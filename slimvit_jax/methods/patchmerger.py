"""PatchMerger (Renggli et al. 2022, "Learning to Merge Tokens in Vision Transformers")."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from slimvit_jax.facts import Facts
from slimvit_jax.layers import LayerNorm
from slimvit_jax.methods.clustering import SoftClustering
from slimvit_jax.options import Positive


class MergeLayer(nn.Module):
    """One location's queries.

    Attributes:
      count: m, the number of queries.
      eps: of the layer norm.
    """

    count: int
    eps: float

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        """(B, n, D) tokens to (B, m, D) in their dtype and the assignment (B, m, n) float32."""
        queries = self.param("queries", nn.initializers.normal(1.0), (self.count, x.shape[-1]), jnp.float32)
        normed = LayerNorm(self.eps, x.dtype, name="norm")(x)
        logits = jnp.einsum("md,bnd->bmn", queries.astype(x.dtype), normed, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(logits, axis=-1)
        return jnp.einsum("bmn,bnd->bmd", weights.astype(x.dtype), normed), weights


class PatchMerger(SoftClustering, kw_only=True):
    """In front of a location m learned queries attend to the patch tokens; what they read are the new tokens.

        y = LayerNorm(x),  A = softmax over tokens of (Q y^T),  x' = A y          m = int(r^k N) at the k-th location

    Official file: models/patchmerger.py (TokenReduction), whose blocks 3, 6, 9 are the locations (4, 7, 10) here: the
    reduction stands in front of that layer. There is no 1 / sqrt(D) in the softmax, and the normalised tokens are what
    is averaged (its norm has eps 1e-5).

    Q has m rows, so a keep rate is fixed by the weights. Keeping every token still mixes them. Imposed scores have no
    meaning here and are ignored. No deviations. Cost per location: 2 m n D. When: the cheapest learned merging, and
    the budget is known before training.

    Attributes:
      keep_rate: share left at each location of what the location before left; a float or one per location.
      locations: 1-based layers in front of which tokens are merged.
      merger_eps: of the norm.
    """

    method = "patchmerger"
    facts = Facts(
        source="Renggli et al. 2022, JoakimHaurum/TokenReduction",
        cost="2 m n D per location",
        learns="m D + 2 D per location",
        grid="merged",
        where="before",
    )

    merger_eps: Positive = 1e-5

    def setup(self) -> None:
        self.cluster_layers = [MergeLayer(m, self.merger_eps) for m in self.counts]
