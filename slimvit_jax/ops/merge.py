"""Matching and merging tokens as pure functions on arrays (ToMe's bipartite matching; the matchings of other methods).

A `Matching` is the decision alone, as indices; the same decision is then applied to features, sizes and provenance.
`protected` tokens in front (class, distillation, registers) are never merged and stay in front in their order.
"""

from __future__ import annotations

import math

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from slimvit_jax.ops.elementwise import unit
from slimvit_jax.ops.select import argsort, first_highest, gather, put, top

_HIGHEST = jax.lax.Precision.HIGHEST


@flax.struct.dataclass
class Matching:
    """Which tokens go where.

    A token that is neither held nor a source is dropped.

    Attributes:
      held: (B, k) int32, the input position that stands at each output position; k = M - r where nothing is dropped.
      source: (B, r) int32, input positions that are merged away, the most similar first.
      target: (B, r) int32, the output position that each of them is merged into.
      length: M, static.
    """

    held: Array
    source: Array
    target: Array
    length: int = flax.struct.field(pytree_node=False)


def most_merges(length: int, protected: int) -> int:
    """How many of `length` tokens one matching can merge away at most."""
    return max(0, (length - protected) // 2)


def pairs(length: int) -> int:
    """How many pairs of an even and an odd position `length` tokens make."""
    return (length + 1) // 2 * (length // 2)


def bipartite_soft_matching(metric: Array, r: int, protected: int) -> Matching | None:
    """Every token of A proposes its most similar token of B; the `r` most similar pairs are merged.

    A are the tokens at even positions, B those at odd ones, protected or not. Similarity is the cosine. Output order:
    the tokens of A that remain, in their original order, then all of B; with several protected tokens these come
    first, in their order. Without any protected token the remaining tokens of A keep the descending order of their
    similarity (official: merge.py, bipartite_soft_matching).

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
    similarity = without_front(similarity, front_a, front_b)
    best, highest = first_highest(similarity, axis=2)
    order = argsort(-highest)
    merged, left = order[:, :r], order[:, r:]
    if protected:
        left = jnp.sort(left, axis=1)
    odd = _positions(metric, 1, length, 2)
    front = _positions(metric, 0, protected)
    held = jnp.concatenate([front, 2 * left[:, front_a:], odd[:, front_b:]], axis=1)
    return Matching(
        held=held,
        source=2 * merged,
        target=left.shape[1] + gather(best, merged),  # in front of B: all that remains of A
        length=length,
    )


def without_front(scores: Array, a: int, b: int) -> Array:
    """(B, n, m) scores, -inf for the first `a` rows and the first `b` columns."""
    rows, columns = (np.arange(size) for size in scores.shape[1:])
    return jnp.where((rows[:, None] < a) | (columns < b), -jnp.inf, scores)


def energy(metric: Array, margin: float) -> Array:
    """How much each token has in common with all of them: mean_j elu(cos_ij - margin), itself included (PiToMe).

    Args:
      metric: (B, n, C); no gradient flows into it.
      margin: cosines below it count little and against the token, no further than -1.

    Returns:
      (B, n) float32, high for tokens that many others are like.
    """
    metric = unit(jax.lax.stop_gradient(metric))
    excess = jnp.einsum("bic,bjc->bij", metric, metric, precision=_HIGHEST) - margin
    return jnp.where(excess > 0, excess, jnp.expm1(jnp.minimum(excess, 0.0))).mean(axis=-1)


def energy_matching(metric: Array, scores: Array, r: int, protected: int, everyone: bool) -> Matching:
    """PiToMe's matching: A and B are every second token in the order of descending energy, most similar pairs merge.

    Args:
      metric: (B, M, C), the protected tokens first; no gradient flows into it.
      scores: (B, n) of `energy`, of the n = M - protected others.
      r: how many are merged away; 1..n // 2.
      protected: tokens in front that are never merged.
      everyone: all n tokens take part, and the r of A most similar to one of B are merged. Otherwise only the 2 r of
        highest energy take part, and all of A are merged.

    Returns:
      The matching. Output order: the protected tokens; then the others of A by descending similarity, or those of low
      energy by descending energy; then B by descending energy.
    """
    order = top(scores, scores.shape[1])
    ranked = gather(metric[:, protected:], order if everyone else order[:, : 2 * r])
    if everyone:
        inner = bipartite_soft_matching(ranked, r, 0)
        assert inner is not None  # r > 0
        held, source, target = gather(order, inner.held), gather(order, inner.source), inner.target
    else:
        ranked = unit(jax.lax.stop_gradient(ranked))
        similarity = jnp.einsum("bac,bdc->bad", ranked[:, ::2], ranked[:, 1::2], precision=_HIGHEST)
        rest = order[:, 2 * r :]
        held = jnp.concatenate([rest, order[:, 1 : 2 * r : 2]], axis=1)
        source, target = order[:, : 2 * r : 2], rest.shape[1] + first_highest(similarity, axis=2)[0]
    front = _positions(metric, 0, protected)
    held = jnp.concatenate([front, protected + held], axis=1)
    return Matching(held=held, source=protected + source, target=protected + target, length=metric.shape[1])


def ranked_matching(x: Array, order: Array, held: int, protected: int) -> tuple[Matching, Array]:
    """DiffRate's matching: the best stay, the next join the most similar of them, the others are dropped.

    Args:
      x: (B, M, D), the protected tokens first; similarity is the cosine of x itself, without gradient.
      order: (B, k) int32 positions among the M - protected others, the best first; those not listed are dropped.
      held: how many of them stay; 1..k. The protected tokens stay too, but nothing is merged into them.
      protected: tokens in front that are never merged.

    Returns:
      The matching, and (B, k - held) float32 cosines of what is merged with what it is merged into.
    """
    x = jax.lax.stop_gradient(x)
    stay, leave = order[:, :held] + protected, order[:, held:] + protected
    similarity = jnp.einsum("bac,bdc->bad", unit(gather(x, leave)), unit(gather(x, stay)), precision=_HIGHEST)
    best, cosine = first_highest(similarity, axis=2)
    front = _positions(x, 0, protected)
    matching = Matching(
        held=jnp.concatenate([front, stay], axis=1), source=leave, target=protected + best, length=x.shape[1]
    )
    return matching, cosine


def merge_sum(matching: Matching, values: Array) -> Array:
    """Sums of what is merged: (B, M, ...) to (B, k, ...)."""
    return gather(values, matching.held) + _arrivals(matching, gather(values, matching.source))


def merge_weighted(matching: Matching, values: Array, size: Array) -> tuple[Array, Array]:
    """Means weighted by size, and the new sizes.

    Args:
      matching: of `bipartite_soft_matching`.
      values: (B, M, D).
      size: (B, M) float32, how many original tokens each stands for.

    Returns:
      (B, k, D) in the dtype of `values`, and (B, k) float32.
    """
    held_size = gather(size, matching.held)
    source_size = gather(size, matching.source)
    new_size = held_size + _arrivals(matching, source_size)
    arrivals = _arrivals(matching, gather(values, matching.source) * source_size[..., None])
    # Tokens that nothing arrives at have held_size == new_size: they pass through unchanged.
    share = (held_size / new_size)[..., None]
    merged = gather(values, matching.held) * share + arrivals / new_size[..., None]
    return merged.astype(values.dtype), new_size


def merge_patches(matching: Matching, values: Array, size: Array) -> Array:
    """`merge_weighted` of values that only patches have: (B, n, D) to those of the patches left, (B, n - r, D).

    `size` is of all tokens. Prefix tokens, in front of the patches, take no part in merging.
    """
    prefix = matching.length - values.shape[1]
    merged, _ = merge_weighted(matching, jnp.pad(values, ((0, 0), (prefix, 0), (0, 0))), size)
    return merged[:, prefix:]


def merge_scaled_sizes(matching: Matching, size: Array, cosine: Array, least: float = 1e-6) -> Array:
    """DiffRate's sizes: s_j + sum_i s_i cos_ij over what is merged into j, and never below `least`.

    A negative cosine lowers the size; without the bound its logarithm, which the attention takes, would not exist.

    Args:
      matching: of `ranked_matching`.
      size: (B, M) float32.
      cosine: (B, r) of the sources.

    Returns:
      (B, k) float32.
    """
    arrivals = _arrivals(matching, gather(size, matching.source) * cosine)
    return jnp.maximum(gather(size, matching.held) + arrivals, least)


def merge_keeping_norm(matching: Matching, values: Array, exact: bool) -> Array:
    """ToFu's merge: the plain mean m of a token and all that join it, scaled by the largest of their norms.

    Args:
      matching: of `bipartite_soft_matching`.
      values: (B, M, D).
      exact: m / |m| * largest norm, as the paper's MLERP; otherwise m / |token before| * largest norm, as released.

    Returns:
      (B, k, D) in the dtype of `values`. The factor is at most 1e6, so that opposite tokens do not make it infinite.
    """
    wide = values.astype(jnp.float32)
    mean, _ = merge_weighted(matching, wide, jnp.ones(values.shape[:2], jnp.float32))
    norm = _norm(wide)
    own, arriving = gather(norm, matching.held), gather(norm, matching.source)
    largest = jnp.maximum(own, jnp.where(_incidence(matching), arriving[:, None, :], 0.0).max(axis=-1))
    divisor = _norm(mean) if exact else own
    factor = largest / jnp.maximum(divisor, 1e-6 * largest)
    return (mean * factor[..., None]).astype(values.dtype)


def merge_owner(matching: Matching, owner: Array) -> Array:
    """Follow provenance: the token that each original token is part of.

    Args:
      matching: what happens to the M tokens.
      owner: (B, L) int32, for each original token its position among the M tokens before the merge; -1 for none.

    Returns:
      (B, L) int32, its position among the k tokens after it; -1 where it was dropped, now or before.
    """
    held = matching.held
    moved = jnp.full((held.shape[0], matching.length), -1, jnp.int32)
    moved = put(moved, held, _positions(held, 0, held.shape[1]))
    moved = put(moved, matching.source, matching.target)
    return jnp.where(owner < 0, -1, gather(moved, jnp.maximum(owner, 0)))


def merge_origin(matching: Matching, origin: Array) -> Array:
    """(B, M) raster indices, -1 for made-up tokens, to (B, k): what is merged into becomes made up."""
    return jnp.where(_incidence(matching).any(axis=-1), -1, gather(origin, matching.held))


def membership(owner: Array, count: int) -> Array:
    """(B, count, L) uint8: 1 where the original token l is part of the token held at c (official: merge_source)."""
    return (owner[:, None, :] == jnp.arange(count, dtype=jnp.int32)[None, :, None]).astype(jnp.uint8)


def unmerge(matching: Matching, values: Array) -> Array:
    """Give every merged token a copy of what it was merged into: (B, k, ...) back to (B, M, ...); nothing dropped."""
    return gather(values, merge_owner(matching, _positions(values, 0, matching.length)))


def _norm(x: Array) -> Array:
    """|x| over the last axis, with a finite gradient at 0, where it is 1e-15."""
    return jnp.sqrt(jnp.maximum(jnp.square(x).sum(-1), 1e-30))


def _positions(like: Array, start: int, stop: int, step: int = 1) -> Array:
    """The int32 numbers of a range, for every image of the batch `like`."""
    positions = jnp.arange(start, stop, step, dtype=jnp.int32)
    return jnp.broadcast_to(positions, (like.shape[0], *positions.shape))


def _incidence(matching: Matching) -> Array:
    """(B, k, r) bool: source r is merged into the output position k."""
    positions = jnp.arange(matching.held.shape[1], dtype=jnp.int32)
    return matching.target[:, None, :] == positions[None, :, None]


def _arrivals(matching: Matching, sources: Array) -> Array:
    """(B, k, ...): the sum of the `sources` (B, r, ...) that arrive at each output position.

    Few tokens arrive somewhere, so a product with their (r, k) incidence costs next to nothing, whereas a scatter
    runs serially on a CPU and with atomics on a GPU.
    """
    flat = sources.reshape(*sources.shape[:2], math.prod(sources.shape[2:]))
    incidence = _incidence(matching).astype(sources.dtype)
    summed = jnp.einsum("bmr,brd->bmd", incidence, flat, preferred_element_type=jnp.float32)
    return summed.reshape(matching.held.shape + sources.shape[2:]).astype(sources.dtype)
