"""Multi-criteria matching (MCTF, Lee et al. 2024) as pure functions on arrays; it decides, `ops.merge` then merges."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from slimvit_jax.ops.elementwise import unit
from slimvit_jax.ops.merge import Matching, without_front
from slimvit_jax.ops.select import argsort, first_highest, gather, put


def importance(attention: Array) -> Array:
    """(B, M) float32: the attention that a token receives, mean over heads and queries; never 0, without gradient.

    Args:
      attention: (B, H, M, M) softmaxed.
    """
    received = jax.lax.stop_gradient(attention).astype(jnp.float32).mean(axis=(1, 2))
    return jnp.maximum(received, jnp.finfo(jnp.float32).tiny)


def attraction(x: Array, received: Array, size: Array, tau_sim: float, tau_info: float, tau_size: float) -> Array:
    """How much tokens at even places want to fuse with those at odd places.

        ((cos(x_a, x_b) + 1) / 2)^(1 / tau_sim) (u_a u_b)^(1 / tau_info) (z_a z_b)^(1 / tau_size)

    u is the inverse importance and z the inverse size, each over its largest.

    Args:
      x: (B, M, D); no gradient flows into it.
      received: (B, M), of `importance`.
      size: (B, M) float32.

    Returns:
      (B, ceil(M / 2), floor(M / 2)) float32 in [0, 1].
    """
    vectors = unit(jax.lax.stop_gradient(x))
    cosine = jnp.einsum("bad,bmd->bam", vectors[:, ::2], vectors[:, 1::2])
    score = jnp.maximum((cosine + 1.0) / 2.0, 0.0)
    score = score if tau_sim == 1 else score ** (1.0 / tau_sim)
    for values, tau in ((received, tau_info), (size, tau_size)):
        inverse = (values.min(axis=1, keepdims=True) / values) ** (1.0 / tau)
        score = score * inverse[:, ::2, None] * inverse[:, None, 1::2]
    return score


def bidirectional_matching(scores: Array, r: int, protected: int, both_ways: bool = True) -> Matching:
    """r tokens are merged away: half of them from even to odd places, the rest from odd to the remaining even ones.

    Each proposes the best partner by the same scores; an odd token that leaves takes along what has joined it. Output
    order: protected tokens, remaining even ones in their order, remaining odd ones by descending best score in the
    second step (in their order where there is only the first). Official: utils/mctf.py, bipartite_soft_matching.

    Args:
      scores: (B, a, b) of `attraction`, over all tokens, protected ones included.
      r: 1..(M - protected) // 2.
      protected: tokens in front that take no part.
      both_ways: False: all r from even to odd places.
    """
    batch, a, b = scores.shape
    front_a, front_b = (protected + 1) // 2, protected // 2
    scores = without_front(scores, front_a, front_b)
    r_even = r // 2 if both_ways else r
    r_odd = r - r_even

    best_odd, highest = first_highest(scores, axis=2)
    order = argsort(-highest)
    leaves, stays = order[:, :r_even], jnp.sort(order[:, r_even:], axis=1)
    gone = put(jnp.zeros((batch, a), bool), leaves, jnp.ones(leaves.shape, bool))
    best_even, highest = first_highest(jnp.where(gone[..., None], -jnp.inf, scores), axis=1)
    # Protected ones, all -inf, come last of all, in their order, since the sort is stable.
    order = argsort(-highest) if both_ways else jnp.roll(_numbers(batch, b), -front_b, axis=1)
    leaves_odd, stays_odd = order[:, :r_odd], order[:, r_odd:]

    front = _numbers(batch, protected)
    held = jnp.concatenate([front, 2 * stays[:, front_a:], 2 * stays_odd[:, : b - r_odd - front_b] + 1], axis=1)
    place = put(jnp.zeros((batch, a + b), jnp.int32), held, _numbers(batch, held.shape[1]))
    source_odd, source = 2 * leaves_odd + 1, 2 * leaves
    target_odd = gather(place, 2 * gather(best_even, leaves_odd))
    place = put(place, source_odd, target_odd)
    target = gather(place, 2 * gather(best_odd, leaves) + 1)
    return Matching(
        held=held.astype(jnp.int32),
        source=jnp.concatenate([source, source_odd], axis=1).astype(jnp.int32),
        target=jnp.concatenate([target, target_odd], axis=1),
        length=a + b,
    )


def _numbers(batch: int, count: int) -> Array:
    return jnp.broadcast_to(jnp.arange(count, dtype=jnp.int32), (batch, count))
