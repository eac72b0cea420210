"""Bipartite soft matching and merging (ToMe, Bolya et al. 2023) as pure functions on arrays.

A `Matching` is the decision alone, as indices; the same decision is then applied to features, sizes and provenance.
Tokens at even positions form set A, those at odd positions set B; `protected` tokens in front (class, distillation,
registers) are never merged, whichever set they are in, and stay in front in their order.
"""

from __future__ import annotations

import math

import flax.struct
import jax
import jax.numpy as jnp

from slimvit_jax.ops.select import gather

Array = jax.Array


@flax.struct.dataclass
class Matching:
    """Which tokens go where.

    Attributes:
      held: (B, M - r) int32, the input position that stands at each output position.
      source: (B, r) int32, input positions that are merged away, the most similar first.
      target: (B, r) int32, the output position that each of them is merged into.
      length: M, static.
    """

    held: Array
    source: Array
    target: Array
    length: int = flax.struct.field(pytree_node=False)


def unit(metric: Array) -> Array:
    """(..., C) float32 vectors of length one. A zero vector stays one: it is like nothing instead of NaN."""
    metric = metric.astype(jnp.float32)
    return metric * jax.lax.rsqrt(jnp.maximum(jnp.square(metric).sum(-1, keepdims=True), 1e-30))


def most_merges(length: int, protected: int) -> int:
    """How many of `length` tokens one matching can merge away at most."""
    return max(0, (length - protected) // 2)


def bipartite_soft_matching(metric: Array, r: int, protected: int) -> Matching | None:
    """Every token of A proposes its most similar token of B; the `r` most similar pairs are merged.

    Similarity is the cosine. Output order: the tokens of A that remain, in their original order, then all of B; with
    several protected tokens these come first, in their order. Without any protected token the remaining tokens of A
    keep the descending order of their similarity (official: merge.py, bipartite_soft_matching).

    Args:
      metric: (B, M, C), the protected tokens first; no gradient flows into it.
      r: how many to merge away; clamped to (M - protected) // 2.
      protected: tokens in front that are never merged.

    Returns:
      The matching, or None where nothing is to be merged.
    """
    length = metric.shape[1]
    r = min(r, most_merges(length, protected))
    if r <= 0:
        return None
    metric = unit(jax.lax.stop_gradient(metric))
    similarity = jnp.einsum("bac,bdc->bad", metric[:, ::2], metric[:, 1::2])
    front_a, front_b = (protected + 1) // 2, protected // 2
    similarity = similarity.at[:, :front_a].set(-jnp.inf).at[:, :, :front_b].set(-jnp.inf)
    highest = similarity.max(axis=-1, keepdims=True)
    # The first position of the maximum, as argmax gives it: two plain reductions are 4 times as fast on a CPU.
    positions = jnp.arange(similarity.shape[2], dtype=jnp.int32)
    best = jnp.where(similarity == highest, positions, similarity.shape[2] - 1).min(axis=-1)  # (B, |A|)
    order = jnp.argsort(-highest[..., 0], axis=1)  # stable; a sort, unlike top_k, stays within each device's images
    merged, left = order[:, :r], order[:, r:]
    if protected:
        left = jnp.sort(left, axis=1)
    odd = jnp.broadcast_to(jnp.arange(1, length, 2, dtype=jnp.int32), (len(metric), length // 2))
    front = jnp.broadcast_to(jnp.arange(protected, dtype=jnp.int32), (len(metric), protected))
    held = jnp.concatenate([front, 2 * left[:, front_a:], odd[:, front_b:]], axis=1)
    return Matching(
        held=held,
        source=2 * merged,
        target=left.shape[1] + gather(best, merged),  # in front of B: all that remains of A
        length=length,
    )


def merge_sum(matching: Matching, values: Array) -> Array:
    """Sums of what is merged: (B, M, ...) to (B, M - r, ...)."""
    return gather(values, matching.held) + _arrivals(matching, gather(values, matching.source))


def merge_mean(matching: Matching, values: Array) -> Array:
    """Plain means of what is merged, each target counting once."""
    ones = jnp.ones((*values.shape[:2], 1), values.dtype)
    return merge_sum(matching, values) / merge_sum(matching, ones)


def merge_weighted(matching: Matching, values: Array, size: Array) -> tuple[Array, Array]:
    """Means weighted by size, and the new sizes.

    Args:
      matching: of `bipartite_soft_matching`.
      values: (B, M, D).
      size: (B, M) float32, how many original tokens each stands for.

    Returns:
      (B, M - r, D) in the dtype of `values`, and (B, M - r) float32.
    """
    held_size = gather(size, matching.held)
    source_size = gather(size, matching.source)
    new_size = held_size + _arrivals(matching, source_size)
    arrivals = _arrivals(matching, gather(values, matching.source) * source_size[..., None])
    # Tokens that nothing arrives at have held_size == new_size: they pass through unchanged.
    share = (held_size / new_size)[..., None]
    merged = gather(values, matching.held) * share + arrivals / new_size[..., None]
    return merged.astype(values.dtype), new_size


def merge_owner(matching: Matching, owner: Array) -> Array:
    """Follow provenance: the token that each original token is part of.

    Args:
      matching: of `bipartite_soft_matching`.
      owner: (B, L) int32, for each original token its position among the M tokens before the merge.

    Returns:
      (B, L) int32, its position among the M - r tokens after it.
    """
    batch, left = matching.held.shape
    rows = jnp.arange(batch)[:, None]
    moved = jnp.zeros((batch, matching.length), jnp.int32)
    moved = moved.at[rows, matching.held].set(jnp.arange(left, dtype=jnp.int32))
    moved = moved.at[rows, matching.source].set(matching.target)
    return gather(moved, owner)


def membership(owner: Array, count: int) -> Array:
    """(B, count, L) uint8: 1 where the original token l is part of the token held at c (official: merge_source)."""
    return (owner[:, None, :] == jnp.arange(count, dtype=jnp.int32)[None, :, None]).astype(jnp.uint8)


def unmerge(matching: Matching, values: Array) -> Array:
    """Give every merged token a copy of what it was merged into: (B, M - r, ...) back to (B, M, ...)."""
    batch = values.shape[0]
    everyone = jnp.broadcast_to(jnp.arange(matching.length, dtype=jnp.int32), (batch, matching.length))
    return gather(values, merge_owner(matching, everyone))


def _arrivals(matching: Matching, sources: Array) -> Array:
    """(B, M - r, ...): the sum of the `sources` (B, r, ...) that arrive at each output position.

    Few tokens arrive somewhere, so a product with their (r, M - r) incidence costs next to nothing, whereas a scatter
    runs serially on a CPU and with atomics on a GPU.
    """
    positions = jnp.arange(matching.held.shape[1], dtype=jnp.int32)
    incidence = (matching.target[:, None, :] == positions[None, :, None]).astype(sources.dtype)  # (B, M - r, r)
    flat = sources.reshape(*sources.shape[:2], math.prod(sources.shape[2:]))
    summed = jnp.einsum("bmr,brd->bmd", incidence, flat, preferred_element_type=jnp.float32)
    return summed.reshape(matching.held.shape + sources.shape[2:]).astype(sources.dtype)
