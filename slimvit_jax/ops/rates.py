"""Numbers of tokens that are learned by gradient descent (DiffRate, Chen et al. 2023, sections 3.2 and 3.3).

A number of the n patches is one of the candidates n, n - g, n - 2 g, ... (g: granularity); what learns are the logits
of a distribution over them. Nothing is removed while it learns: patches have ranks, and masks of ranks.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from slimvit_jax.ops.elementwise import unit
from slimvit_jax.ops.select import argsort, first_highest, straight_through, top


def candidates(n: int, granularity: int) -> np.ndarray:
    """The numbers that can be chosen, float32, descending from n in steps of the granularity.

    >>> candidates(10, 4).tolist()
    [10.0, 6.0, 2.0]
    """
    return np.arange(n, 0, -granularity, dtype=np.float32)


def kept_number(logits: Array, numbers: np.ndarray) -> Array:
    """The expected candidate rounded up, () float32, with the gradient of the expectation.

    Args:
      logits: (K,) float32.
      numbers: (K,) of `candidates`.
    """
    expected = (jax.nn.softmax(logits) * numbers).sum()
    return straight_through(jnp.ceil(jax.lax.stop_gradient(expected)), expected)


def survival(logits: Array, numbers: np.ndarray) -> Array:
    """(n,) float32: the probability that the patch of each rank, the best having rank 0, is among those kept."""
    ranks = np.arange(int(numbers[0]), dtype=np.float32)
    return jax.nn.softmax(logits) @ jnp.asarray(numbers[:, None] > ranks[None], jnp.float32)


def ranks_of(scores: Array, held: Array) -> Array:
    """(B, n) int32 ranks by descending score, those not held behind all others.

    Args:
      scores: (B, n).
      held: (B, n) bool.
    """
    order = top(jnp.where(held, scores, -jnp.inf), scores.shape[1])
    return argsort(order)


def rank_mask(ranks: Array, probability: Array, before: Array, after: Array) -> Array:
    """(B, n) float32, 0 for the ranks after..before - 1 and else 1, with the gradient of their probability to stay.

    Args:
      ranks: (B, n) int32.
      probability: (n,) of `survival`.
      before, after: () numbers of patches held; where `after` is not smaller the mask is 1 without a gradient.
    """
    hard = 1.0 - ((ranks >= after) & (ranks < before)).astype(jnp.float32)
    mask = straight_through(hard, probability[ranks])
    return jnp.where(after < before, mask, 1.0)


def merge_in_place(x: Array, size: Array, source: Array, target: Array, least: float) -> tuple[Array, Array, Array]:
    """`ops.merge.ranked_matching` and what follows it, for masks instead of places: what is merged stays in its row.

    Args:
      x: (B, n, D) patches.
      size: (B, n) float32.
      source: (B, n) bool, patches that are merged.
      target: (B, n) bool, patches that others may be merged into.
      least: of the sizes of sources, as scaled by their cosine.

    Returns:
      (B, n, D) with the plain mean where something arrived; (B, n) float32 sizes; (B, n) int32, the row that each
      source is part of, other rows being part of themselves.
    """
    directions = unit(jax.lax.stop_gradient(x))
    cosine = jnp.einsum("bsd,btd->bst", directions, directions, precision=jax.lax.Precision.HIGHEST)
    best, cosine = first_highest(jnp.where(target[:, None, :], cosine, -jnp.inf), axis=2)
    rows = jnp.arange(x.shape[1], dtype=jnp.int32)
    arrives = ((best[:, :, None] == rows) & source[:, :, None]).astype(jnp.float32)  # (B, source, target)
    count = 1.0 + arrives.sum(axis=1)
    merged = (x + jnp.einsum("bst,bsd->btd", arrives, x.astype(jnp.float32))) / count[..., None]
    scaled = jnp.where(source, jnp.maximum(size * jnp.where(source, cosine, 1.0), least), size)
    size = scaled + jnp.einsum("bst,bs->bt", arrives, scaled)
    return merged.astype(x.dtype), size, jnp.where(source, best, rows)


def layers_share(kept: list[tuple[Array, Array]], n: int, prefix: int, dim: int, hidden: int) -> Array:
    """Multiply-adds of all layers over those of the dense model, () float32.

    A layer leaves the least of what came, of what stays or merges, and of what stays; as in the release the gradient
    goes to the latter two alike, whichever is the least, and to none of the layers before.

    Args:
      kept: per layer (patches that stay or merge, patches that stay), () float32 of `kept_number`.
      n, prefix, dim, hidden: patches, prefix tokens, D, and the hidden width of the MLP.
    """
    cost, held = jnp.float32(0.0), jnp.float32(n)
    for stay_or_merge, stay in kept:
        tokens = held + prefix
        cost = cost + 4 * tokens * dim**2 + 2 * tokens**2 * dim
        least = jnp.minimum(jnp.minimum(held, stay_or_merge), stay)
        held = straight_through(jax.lax.stop_gradient(least), stay_or_merge + stay)
        cost = cost + 2 * (held + prefix) * dim * hidden
    whole = n + prefix
    return cost / (len(kept) * (4 * whole * dim**2 + 2 * whole**2 * dim + 2 * whole * dim * hidden))
