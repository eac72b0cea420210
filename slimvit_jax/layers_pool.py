"""Pooling: means of tokens that stand for several patches or none, and one learned query that reads them (SigLIP)."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from slimvit_jax.layers import LayerNorm, Linear, Mlp
from slimvit_jax.ops.attention import attention
from slimvit_jax.tokens import Tokens


def mean_pool(tokens: Tokens, weights: Array | None, num_patches: int, include_prefix: bool = False) -> Array:
    """The mean of the patches, (B, D) float32.

    Args:
      tokens: with n patches.
      weights: (B, n) summing to 1, or None for equal ones.
      num_patches: N of the grid.
      include_prefix: with the prefix tokens: the plain mean over all tokens held. With weights the patches together
        weigh as much as the grid has, so that merging them does not promote the prefix tokens.
    """
    patches = tokens.patches.astype(jnp.float32)
    mean = patches.mean(axis=1) if weights is None else jnp.einsum("bn,bnd->bd", weights, patches)
    if not include_prefix:
        return mean
    n = tokens.n if weights is None else num_patches
    return (mean * n + tokens.head.astype(jnp.float32).sum(axis=1)) / (n + tokens.prefix)


def weighted(
    tokens: Tokens, weights: Array | None, num_patches: int, include_prefix: bool
) -> tuple[Array, Array | None]:
    """What attention pooling reads, (B, m, D), and the log weights (B, m) that make a patch count as in `mean_pool`."""
    if weights is not None:
        weights = jnp.log(jnp.maximum(weights * num_patches, jnp.finfo(jnp.float32).tiny))
    if not include_prefix:
        return tokens.patches, weights
    return tokens.x, None if weights is None else tokens.per_token(weights, 0.0)


def pool_flops(tokens: int, dim: int, hidden: int) -> int:
    """Multiply-adds of `AttentionPool` on so many tokens."""
    return 2 * tokens * dim**2 + 2 * tokens * dim + 2 * dim**2 + 2 * dim * hidden


class AttentionPool(nn.Module):
    """timm's AttentionPoolLatent with one latent: y = proj(attention(latent, x)), y + mlp(norm(y)).

    Attributes:
      dim, num_heads: of the tokens.
      hidden: width inside the MLP.
      activation: of the MLP.
      eps: of the norm.
    """

    dim: int
    num_heads: int
    hidden: int
    activation: str = "gelu"
    eps: float = 1e-6
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: Array, log_weight: Array | None = None) -> Array:
        """(B, n, D) tokens, and (B, n) added to the logits of each or None, to (B, D)."""
        batch, n, _ = tokens.shape
        shape = (self.num_heads, self.dim // self.num_heads)
        latent = self.param("latent", nn.initializers.truncated_normal(self.dim**-0.5), (1, 1, self.dim))
        query = Linear(self.dim, dtype=self.dtype, name="q")(latent).reshape(1, 1, *shape)
        both = Linear(2 * self.dim, dtype=self.dtype, name="kv")(tokens).reshape(batch, n, 2, *shape)
        query = jnp.broadcast_to(query, (batch, 1, *shape))
        read = attention(query, both[:, :, 0], both[:, :, 1], log_weight=log_weight, backend="xla")
        y = Linear(self.dim, dtype=self.dtype, name="proj")(read.reshape(batch, self.dim))
        z = LayerNorm(self.eps, self.dtype, name="norm")(y)
        return y + Mlp(self.hidden, self.dim, dtype=self.dtype, activation=self.activation, name="mlp")(z, False)
