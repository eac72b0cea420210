"""What life regression learns: the score of every patch, from which its life follows."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from slimvit_jax.layers import LayerNorm
from slimvit_jax.ops import life
from slimvit_jax.tokens import Tokens


def _weight_init(kind: str, scale: float) -> nn.initializers.Initializer:
    def init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        if kind == "normal":
            return scale * jax.random.normal(key, shape, dtype)
        return (scale if kind == "identity" else -scale) * jnp.eye(shape[0], dtype=dtype)

    return init


class LifePredictor(nn.Module):
    """Equations (1) and (2): layer norm and a bilinear form between the class token and every patch.

    Attributes:
      eps: of the layer norm.
      kind: of the initial W: "normal", "identity" or "negative_identity".
      scale: standard deviation of "normal", factor of the identities.
    """

    eps: float
    kind: str
    scale: float

    @nn.compact
    def __call__(self, tokens: Tokens, class_token: bool) -> Array:
        """(B, N) float32 scores of the patches."""
        dim = tokens.x.shape[-1]
        weight = self.param("weight", _weight_init(self.kind, self.scale), (dim, dim), jnp.float32)
        norm = LayerNorm(self.eps, name="norm")
        patches = tokens.patches.astype(jnp.float32)
        anchor = tokens.x[:, :1].astype(jnp.float32) if class_token else patches.mean(axis=1, keepdims=True)
        return life.bilinear_scores(norm(anchor)[:, 0], norm(patches), weight)
