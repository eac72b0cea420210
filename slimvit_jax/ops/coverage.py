"""Farthest-point order of the patches: a prefix of any length covers the image as well as so many patches can."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from slimvit_jax.ops.cluster import unit

Array = jax.Array

#: Similarities closer than this count as alike, so that rounding does not decide between equal patches.
RESOLUTION = 2.0**-20


def similarities(patches: Array) -> Array:
    """(B, N, D) to (B, N, N) float32 cosines, as multiples of `RESOLUTION`."""
    x = unit(jax.lax.stop_gradient(patches).astype(jnp.float32))
    cosines = jnp.einsum("bnd,bmd->bnm", x, x, preferred_element_type=jnp.float32)
    return jnp.round(cosines / RESOLUTION) * RESOLUTION


def centrality(patches: Array) -> Array:
    """(B, N) cosine of every patch of (B, N, D) with the mean patch."""
    patches = jax.lax.stop_gradient(patches).astype(jnp.float32)
    return jnp.einsum("bnd,bd->bn", unit(patches), unit(patches.mean(axis=1)))


def farthest_point_ranks(patches: Array, first: Array) -> Array:
    """Rank 0 for `first`, then always the patch whose greatest cosine with those before it is smallest.

    Of patches equally well covered the lower index comes first. No gradient flows.

    Args:
      patches: (B, N, D).
      first: (B,) int, the patch of rank 0.

    Returns:
      (B, N) int32, a permutation of 0..N-1 for each image.
    """
    cosines = similarities(patches)
    batch, n, _ = cosines.shape
    positions = jnp.arange(n, dtype=jnp.int32)

    def step(rank: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        pick, covered, ranks = state
        ranks = jnp.where(positions == pick[:, None], rank, ranks)
        row = jnp.take_along_axis(cosines, pick[:, None, None], axis=1, mode="promise_in_bounds")[:, 0]
        covered = jnp.where(positions == pick[:, None], jnp.inf, jnp.maximum(covered, row))
        return _first_smallest(covered), covered, ranks

    start = (first.astype(jnp.int32), jnp.full((batch, n), -jnp.inf), jnp.zeros((batch, n), jnp.int32))
    return jax.lax.fori_loop(0, n, step, start)[2]


def standard_ranks(ranks: Array) -> Array:
    """Ranks (B, N) as scores of mean 0 and deviation 1, the higher the earlier."""
    n = ranks.shape[1]
    spread = max(1.0, ((n * n - 1) / 12) ** 0.5)
    return ((n - 1) / 2 - ranks.astype(jnp.float32)) / spread


def _first_smallest(values: Array) -> Array:
    """(B, N) to (B,) int32: argmin as two plain reductions, faster on a CPU and the same on every device."""
    positions = jnp.arange(values.shape[1], dtype=jnp.int32)
    smallest = values.min(axis=1, keepdims=True)
    return jnp.where(values == smallest, positions, values.shape[1] - 1).min(axis=1)
