"""Farthest-point order of the patches: a prefix of any length covers the image about as well as so many patches can.

`greedy_ranks` is the definition, one patch after the other. `parallel_ranks` comes near it in two passes over one
matrix of similarities, without a loop: every patch is compared with those of higher priority all at once.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from slimvit_jax.ops.elementwise import unit
from slimvit_jax.ops.select import first_lowest, gather

#: Similarities closer than this count as alike, so that rounding does not decide between equal patches.
RESOLUTION = 2.0**-20


def similarities(patches: Array) -> Array:
    """(B, N, D) to (B, N, N) float32 cosines, as multiples of `RESOLUTION`. No gradient flows."""
    x = unit(jax.lax.stop_gradient(patches))
    cosines = jnp.einsum("bnd,bmd->bnm", x, x, preferred_element_type=jnp.float32)
    return jnp.round(cosines / RESOLUTION) * RESOLUTION


def centrality(patches: Array) -> Array:
    """(B, N) cosine of every patch of (B, N, D) with the mean patch."""
    patches = jax.lax.stop_gradient(patches).astype(jnp.float32)
    return jnp.einsum("bnd,bd->bn", unit(patches), unit(patches.mean(axis=1)))


def greedy_ranks(patches: Array, first: Array) -> Array:
    """Rank 0 for `first`, then always the patch whose greatest cosine with those before it is smallest.

    Of patches equally well covered the lower index comes first. N steps, one after the other.

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
        row = gather(cosines, pick[:, None])[:, 0]
        covered = jnp.where(positions == pick[:, None], jnp.inf, jnp.maximum(covered, row))
        return first_lowest(covered, axis=1)[0], covered, ranks

    start = (first.astype(jnp.int32), jnp.full((batch, n), -jnp.inf), jnp.zeros((batch, n), jnp.int32))
    return jax.lax.fori_loop(0, n, step, start)[2]


def parallel_ranks(patches: Array, first: Array, grid: tuple[int, int], passes: int = 2) -> Array:
    """Nearly the same order, from all pairs at once.

    Patches are ranked by their greatest cosine with those of higher priority, the least similar first. The priority of
    the first pass is the place on the grid, from coarse to fine (`coarse_to_fine`); that of every further pass is
    the ranking of the one before. `first` has the highest throughout; patches alike follow the priority.

    Args:
      patches: (B, N, D) in raster order.
      first: (B,) int, the patch of rank 0.
      grid: rows and columns, N in all.
      passes: at least 1.

    Returns:
      (B, N) int32, a permutation of 0..N-1 for each image.
    """
    cosines = similarities(patches)
    n = cosines.shape[1]
    chosen = jnp.arange(n, dtype=jnp.int32) == first[:, None]
    priority = jnp.where(chosen, -1, jnp.asarray(coarse_to_fine(*grid)))
    for _ in range(passes):
        before = priority[:, None, :] < priority[:, :, None]  # (B, i, j): j has priority over i
        covered = jnp.where(before, cosines, -2.0).max(axis=2)
        # Places are counted, not sorted: the comparisons of all pairs are one cheap reduction on every device.
        mine, other = covered[:, :, None], covered[:, None, :]
        priority = ((other < mine) | ((other == mine) & before)).sum(axis=2, dtype=jnp.int32)
    return priority


def coarse_to_fine(rows: int, columns: int) -> np.ndarray:
    """(N,) int32, the place of every patch in the order of ordered dithering: a prefix is spread evenly over the grid.

    >>> coarse_to_fine(2, 4).reshape(2, 4)
    array([[0, 4, 1, 5],
           [6, 2, 7, 3]], dtype=int32)
    """
    y, x = np.divmod(np.arange(rows * columns), columns)
    keys = np.zeros(rows * columns, np.int64)
    for bit in range(max(rows - 1, columns - 1, 1).bit_length()):  # the lowest bits of a place decide first
        down, right = (y >> bit) & 1, (x >> bit) & 1
        keys = 4 * keys + 2 * (down ^ right) + down  # (0, 0), (1, 1), (0, 1), (1, 0)
    places = np.empty(rows * columns, np.int32)
    places[np.argsort(keys, kind="stable")] = np.arange(rows * columns)
    return places


def standard_ranks(ranks: Array) -> Array:
    """Ranks (B, N) as scores of mean 0 and deviation 1, the higher the earlier."""
    n = ranks.shape[1]
    spread = max(1.0, ((n * n - 1) / 12) ** 0.5)
    return ((n - 1) / 2 - ranks.astype(jnp.float32)) / spread
