"""Agglomerative clustering as a pure function: the two nearest clusters become one until few enough are left."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array

from slimvit_jax.ops import merge
from slimvit_jax.ops.elementwise import unit
from slimvit_jax.ops.select import first_lowest, gather, top

Linkage = Literal["average", "complete", "single"]
State = tuple[Array, Array, Array, Array, Array]  # of the rounds, see `agglomerate`


def cosine_distances(metric: Array) -> Array:
    """(B, n, C) to (B, n, n) float32, 1 - cosine, exactly symmetric; no gradient flows into it."""
    metric = unit(jax.lax.stop_gradient(metric))
    distances = 1 - jnp.einsum("bic,bjc->bij", metric, metric, precision=jax.lax.Precision.HIGHEST)
    upper = jnp.triu(jnp.ones(distances.shape[1:], bool))
    return jnp.where(upper, distances, distances.swapaxes(1, 2))


def agglomerate(distances: Array, count: int, linkage: Linkage) -> Array:
    """Merges the two nearest clusters, every token beginning as its own, until `count` are left.

    The distance of two clusters is the average, the largest ("complete") or the smallest ("single") distance of a
    member of the one to a member of the other. Ties go to the lower tokens. That is scipy's and scikit-learn's
    clustering cut at `count`, found without the rest of the tree.

    Lance and Williams' update rewrites one row per merge. For each cluster a lower bound of its distance to the nearest
    is kept, which merges of others cannot undercut, so that a round reads one row: either it belongs to the nearest
    pair, or its bound was out of date and rises (Müllner 2011, "Modern hierarchical agglomerative clustering
    algorithms", the generic algorithm). All images take their rounds together, n - count of them at least; each costs
    O(n). Where a distance is not finite it counts as very large.

    Args:
      distances: (B, n, n), symmetric; the diagonal is not read.
      count: clusters left, 1..n.
      linkage: see above.

    Returns:
      (B, n) int32, the lowest token of the cluster that each token is in.
    """
    batch, n, _ = distances.shape
    rows, numbers = jnp.arange(batch), jnp.arange(n, dtype=jnp.int32)
    far = jnp.nan_to_num(distances.astype(jnp.float32), nan=1e30, posinf=1e30, neginf=-1e30)
    far = jnp.where(jnp.eye(n, dtype=bool), jnp.inf, far)

    def unfinished(state: State) -> Array:
        return (state[-1] > 0).any()

    def step(state: State) -> State:
        far, bound, size, leader, left = state
        low, _ = first_lowest(bound, axis=1)
        row = far[rows, low]
        high, nearest = first_lowest(row, axis=1)
        other = far[rows, high]
        joins = (left > 0) & (nearest <= bound[rows, low])
        here, there = numbers == low[:, None], numbers == high[:, None]

        own, more = size[rows, low][:, None], size[rows, high][:, None]
        joined = _joined(row, other, own, more, linkage)
        joined = jnp.where(joins[:, None], jnp.where(here | there, jnp.inf, joined), row)
        far = far.at[rows, low].set(joined).at[rows, :, low].set(joined)
        far = far.at[rows, :, high].set(jnp.where(joins[:, None], jnp.inf, far[rows, :, high]))

        there &= joins[:, None]
        bound = jnp.where(here, joined.min(axis=1, keepdims=True), jnp.where(there, jnp.inf, bound))
        size = jnp.where(here & joins[:, None], own + more, size)
        leader = jnp.where(joins[:, None] & (leader == high[:, None]), low[:, None], leader)
        return far, bound, size, leader, left - joins

    leader = jnp.broadcast_to(numbers, (batch, n))
    start = (far, far.min(axis=-1), jnp.ones((batch, n), jnp.float32), leader, jnp.full((batch,), n - count, jnp.int32))
    return jax.lax.while_loop(unfinished, step, start)[3]


def _joined(row: Array, other: Array, own: Array, more: Array, linkage: Linkage) -> Array:
    """Distances of the union of two clusters, of `own` and `more` tokens, from those of each."""
    least = jnp.minimum(row, other)
    if linkage == "single":
        return least
    if linkage == "complete":
        return jnp.maximum(row, other)
    return jnp.maximum((own * row + more * other) / (own + more), least)  # rounding must not undercut the bounds


def matching(leader: Array, count: int, protected: int) -> merge.Matching:
    """The clusters as a matching: the lowest token of each stands for it, in raster order, the others join it.

    Args:
      leader: (B, n) of `agglomerate`.
      count: how many clusters that are.
      protected: tokens in front of the n, which stay as they are.
    """
    batch, n = leader.shape
    stays = leader == jnp.arange(n, dtype=jnp.int32)
    held, source = (top(chosen.astype(jnp.float32), k) for chosen, k in ((stays, count), (~stays, n - count)))
    number = jnp.cumsum(stays, axis=1, dtype=jnp.int32) - 1
    front = jnp.broadcast_to(jnp.arange(protected, dtype=jnp.int32), (batch, protected))
    return merge.Matching(
        held=jnp.concatenate([front, protected + held], axis=1),
        source=protected + source,
        target=protected + gather(number, gather(leader, source)),
        length=protected + n,
    )
