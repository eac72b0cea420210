"""The last part of a vision transformer: from the tokens of the last layer to logits."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from slimvit_jax.layers import LayerNorm, Linear
from slimvit_jax.layers_pool import AttentionPool, mean_pool, pool_flops, weighted
from slimvit_jax.slimming import Slimming
from slimvit_jax.tokens import Tokens


class Classifier(nn.Module):
    """The final norm, a pooling, and one or two linear heads.

    Attributes:
      num_classes: 0 for no head: the logits are the pooled features.
      dim, num_patches: width of the tokens, patches of the grid.
      distilled: a second head reads the second prefix token; logits are the mean of both.
      pool: "token", "avg" or "map".
      include_prefix: "avg" and "map" read the prefix tokens too.
      norm_last: normalise after pooling instead of before.
      num_heads, hidden, activation: of "map".
      drop: dropout in front of the heads.
    """

    num_classes: int
    dim: int
    num_patches: int
    distilled: bool = False
    pool: str = "token"
    include_prefix: bool = False
    norm_last: bool = False
    num_heads: int = 1
    hidden: int = 0
    activation: str = "gelu"
    drop: float = 0.0
    eps: float = 1e-6
    dtype: Any = jnp.float32

    def setup(self) -> None:
        if self.norm_last:
            self.fc_norm_layer = LayerNorm(self.eps, self.dtype, name="fc_norm")
        else:
            self.norm = LayerNorm(self.eps, self.dtype)
        if self.pool == "map":
            sizes = (self.dim, self.num_heads, self.hidden)
            self.attn_pool = AttentionPool(*sizes, self.activation, self.eps, self.dtype)
        self.head_drop = nn.Dropout(self.drop)
        if self.num_classes:
            self.head = Linear(self.num_classes, dtype=jnp.float32)
            if self.distilled:
                self.head_dist = Linear(self.num_classes, dtype=jnp.float32)

    def normalised(self, x: Array) -> Array:
        """Tokens of the last layer as `aux.features` has them."""
        return x if self.norm_last else self.norm(x)

    def __call__(self, tokens: Tokens, normed: Tokens, method: Slimming, train: bool) -> tuple[Array, dict[str, Array]]:
        """(B, num_classes) float32 logits and taps, from the tokens of the last layer, as they are and normalised."""
        pooled = self._pooled(tokens, normed, method, train)
        if self.norm_last:
            pooled = self.fc_norm_layer(pooled)
        pooled = self.head_drop(pooled, deterministic=not train)
        if not self.num_classes:
            return pooled.astype(jnp.float32), {}
        if not self.distilled:
            return self.head(pooled), {}
        head = self.head(pooled)
        dist = self.head_dist(self.head_drop(normed.x[:, 1], deterministic=not train))
        return (head + dist) / 2, {"head_logits": head, "dist_logits": dist}

    def patch_logits(self, patches: Array) -> Array:
        """(B, N, num_classes): what the head makes of every patch (B, N, D) of `aux.features` by itself."""
        return self.head(self.fc_norm_layer(patches) if self.norm_last else patches)

    def flops(self, tokens: int, prefix: int) -> int:
        """Multiply-adds on so many patch tokens with `prefix` in front."""
        held = tokens + (prefix if self.include_prefix else 0)
        pool = pool_flops(held, self.dim, self.hidden) if self.pool == "map" else 0
        return pool + self.dim * self.num_classes * (2 if self.distilled else 1)

    def _pooled(self, tokens: Tokens, normed: Tokens, method: Slimming, train: bool) -> Array:
        if method.pools_patches:  # and normalises after that
            return self.normalised(mean_pool(tokens, method.pooling_weights(tokens, train), self.num_patches))
        if self.pool == "token":
            return normed.x[:, 0]
        weights = method.pooling_weights(normed, train)
        if self.pool == "map":
            return self.attn_pool(*weighted(normed, weights, self.num_patches, self.include_prefix))
        return mean_pool(normed, weights, self.num_patches, self.include_prefix)
