"""Merging as a differentiable relaxation (DTEM, Lee and Hong 2024), pure functions: nothing leaves, weights flow.

Tokens have real-valued sizes. Giving itself to another token takes size from a token instead of removing it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from slimvit_jax.ops.select import argsort, gather

#: Below this a size counts as none: its logarithm stays finite, and no gradient flows into it.
SMALLEST = 1e-12


def soft_top_edges(scores: Array, r: int, edges: int, tau1: float, tau2: float) -> Array:
    """How much each token of A gives itself to each of B when `r` edges are chosen, softly.

    r rounds of a softmax over the `edges` best edges of every token; after a round a token counts as much less as it
    was chosen in it. No token gives more than itself.

    Args:
      scores: (B, a, b) float32, similarities; gradients flow into them.
      r: rounds, at least 1.
      edges: per token of A, clamped to b (k2 of the paper).
      tau1: divides the scores.
      tau2: temperature of the softmax.

    Returns:
      (B, a, b) float32 in [0, 1], rows summing to 1 at most and about r in all.
    """
    best = jnp.argsort(-scores, axis=-1)[..., : min(edges, scores.shape[-1])]
    logits = jnp.take_along_axis(scores, best, axis=-1) / tau1
    shape = logits.shape
    smallest = jnp.finfo(jnp.float32).eps

    def choose(state: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        logits, chosen = state
        once = jax.nn.softmax(logits.reshape(shape[0], -1) / tau2, axis=-1).reshape(shape)
        left = jnp.maximum(1.0 - once.sum(axis=-1, keepdims=True), smallest)
        return (logits + jnp.log(left), chosen + once), None

    (_, chosen), _ = jax.lax.scan(choose, (logits, jnp.zeros_like(logits)), None, length=r)
    excess = jax.lax.stop_gradient(jnp.maximum(chosen.sum(axis=-1, keepdims=True) - 1.0, 0.0))
    # A product with the one-hot targets: a scatter runs serially on a CPU and with atomics on a GPU.
    targets = jax.nn.one_hot(best, scores.shape[-1], dtype=jnp.float32)  # (B, a, edges, b)
    return jnp.einsum("bak,bakm->bam", chosen / (1.0 + excess), targets)


def soft_merge(x: Array, size: Array, share: Array) -> tuple[Array, Array, Array]:
    """Tokens at even places give shares of themselves to those at odd places; then all in descending order of size.

        x_j <- (s_j x_j + sum_i a_ij s_i x_i) / s'_j,  s'_j = s_j + sum_i a_ij s_i;     s'_i = s_i (1 - sum_j a_ij)

    Args:
      x: (B, n, D) patch tokens.
      size: (B, n) float32.
      share: (B, ceil(n / 2), floor(n / 2)), a_ij of `soft_top_edges`.

    Returns:
      (B, n, D) in the dtype of `x`, (B, n) float32 and the order (B, n) int32 that they were put into: places 0.. of
      the even ones, then of the odd ones, sorted.
    """
    even, odd = x[:, ::2].astype(jnp.float32), x[:, 1::2].astype(jnp.float32)
    gives, takes = size[:, ::2], size[:, 1::2]
    given = share * gives[..., None]
    total = jnp.maximum(takes + given.sum(axis=1), SMALLEST)
    odd = (odd * takes[..., None] + jnp.einsum("bam,bad->bmd", given, even)) / total[..., None]
    rest = 1.0 - share.sum(axis=-1)
    rest = rest + jax.lax.stop_gradient(jnp.clip(rest, 0.0, 1.0) - rest)  # rounding can take it below 0
    sizes = jnp.concatenate([gives * rest, total], axis=1)
    order = argsort(-jax.lax.stop_gradient(sizes))
    merged = gather(jnp.concatenate([even, odd], axis=1), order).astype(x.dtype)
    return merged, gather(sizes, order), order


def log_size(size: Array) -> Array:
    """log(size), finite with a finite gradient where a token has given all of itself away."""
    return jnp.log(jnp.maximum(size, SMALLEST))
