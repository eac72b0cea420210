"""Evo-ViT's running class attention and representative token, as pure functions (Xu et al. 2022)."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array


def evolve(running: Array, new: Array, tradeoff: float | Array) -> Array:
    """a_k = (1 - alpha) a_{k-1} + alpha * new, the global class attention; any shape."""
    return (1.0 - tradeoff) * running + tradeoff * new


def representative_token(patches: Array, scores: Array) -> Array:
    """The mean of the placeholders weighted by their normalised scores.

    Args:
      patches: (B, n, D).
      scores: (B, n), at least 0; where all of an image are zero its plain mean is taken.

    Returns:
      (B, 1, D) float32.
    """
    total = scores.sum(axis=1, keepdims=True)
    weights = jnp.where(total > 0, scores / jnp.where(total > 0, total, 1.0), 1.0 / scores.shape[1])
    return jnp.einsum("bn,bnd->bd", weights, patches, preferred_element_type=jnp.float32)[:, None]


def with_representative(values: Array, scores: Array, left: int) -> Array:
    """(B, n, C) and (B, n), the best first, to (B, left + 1, C): the first `left`, and the mean of the others."""
    return jnp.concatenate([values[:, :left], representative_token(values[:, left:], scores[:, left:])], axis=1)
