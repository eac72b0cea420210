"""Clustering and sampling of tokens as pure functions: Sinkhorn, k-medoids, DPC-KNN, inverse transform sampling.

Patch tokens only, no prefix tokens. Whatever decides (distances, densities, distribution functions) is float32 at the
highest matrix precision, whatever the dtype of the tokens; shapes are static.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from slimvit_jax.ops.select import first_highest, first_lowest, gather, put, top, top_values

_HIGHEST = jax.lax.Precision.HIGHEST


def pairwise_distances(x: Array) -> Array:
    """Euclidean distances between all tokens of an image.

    Args:
      x: (B, n, D).

    Returns:
      (B, n, n) float32, exactly 0 on the diagonal.
    """
    x = x.astype(jnp.float32)
    # What all tokens have in common cancels in exact arithmetic; taking it out first keeps float32 from losing digits.
    x = x - x.mean(axis=1, keepdims=True)
    square = jnp.square(x).sum(-1)
    product = jnp.einsum("bid,bjd->bij", x, x, precision=_HIGHEST)
    squared = square[:, :, None] + square[:, None, :] - 2 * product
    return jnp.sqrt(jnp.where(jnp.eye(x.shape[1], dtype=bool), 0.0, jnp.maximum(squared, 0.0)))


def nearest_center(distances: Array, centers: Array) -> Array:
    """(B, n) int32: the number of the nearest center of every token; ties go to the lower number.

    Args:
      distances: (B, n, n), symmetric.
      centers: (B, m) int32 tokens.
    """
    return first_lowest(gather(distances, centers), axis=1)[0]


def k_medoids(distances: Array, weight: Array, centers: Array, iterations: int) -> tuple[Array, Array]:
    """Alternates assignment to the nearest medoid and choice of the cheapest member, on weighted distances.

    The cost of a token is weight_i * sum over all tokens j of d_ij, as in the official code; it does not change from
    round to round, and the clusters of a round are disjoint, so all medoids move at once. A cluster that lost all its
    tokens (to an identical one of lower number) keeps its medoid.

    Args:
      distances: (B, n, n), symmetric.
      weight: (B, n).
      centers: (B, m) int32, the initial medoids.
      iterations: rounds.

    Returns:
      Medoids (B, m) int32 and the number of each token's nearest medoid (B, n) int32.
    """
    cost = (weight * distances.sum(-1))[:, None, :]
    numbers = jnp.arange(centers.shape[1], dtype=jnp.int32)[None, :, None]

    def move(_: int, centers: Array) -> Array:
        member = nearest_center(distances, centers)[:, None, :] == numbers
        cheapest = first_lowest(jnp.where(member, cost, jnp.inf), axis=2)[0]
        return jnp.where(member.any(axis=2), cheapest, centers)

    centers = jax.lax.fori_loop(0, iterations, move, centers)
    return centers, nearest_center(distances, centers)


def far_apart(distances: Array, first: Array, k: int) -> Array:
    """Initial medoids without weights: each next one is the token with the largest distance to any chosen one.

    Args:
      distances: (B, n, n).
      first: (B,) int32 token to begin with.
      k: how many.

    Returns:
      (B, k) int32, all different.
    """

    def step(carry: tuple[Array, Array, Array], _: None) -> tuple[tuple[Array, Array, Array], Array]:
        farthest, free, chosen = carry
        farthest = jnp.maximum(farthest, gather(distances, chosen[:, None])[:, 0])
        free = free & (tokens != chosen[:, None])
        following = first_highest(jnp.where(free, farthest, -jnp.inf), axis=1)[0]
        return (farthest, free, following), chosen

    tokens = jnp.arange(distances.shape[1], dtype=jnp.int32)
    start = (jnp.zeros(distances.shape[:2], distances.dtype), jnp.ones(distances.shape[:2], bool))
    _, chosen = jax.lax.scan(step, (*start, first.astype(jnp.int32)), None, length=k)
    return chosen.T


def peak_scores(distances: Array, neighbors: int) -> Array:
    """Density peaks: how dense a token lies times how far away the next denser one is (DPC-KNN).

    rho_i = exp(-mean over the `neighbors` nearest, itself included, of d^2);
    delta_i = min of d_ij over j with rho_j > rho_i, or the largest distance of the image where there is none.

    In logarithms, since a density is 0 in float32 where tokens are a dozen apart.

    Args:
      distances: (B, n, n).
      neighbors: k, 1..n.

    Returns:
      (B, n) log(rho * delta), finite.
    """
    nearest = top_values(-distances, neighbors)
    density = -jnp.square(nearest).mean(-1)
    largest = distances.max(axis=(1, 2), keepdims=True)
    denser = density[:, None, :] > density[:, :, None]
    delta = jnp.where(denser, distances, largest).min(-1)
    return density + jnp.log(jnp.maximum(delta, jnp.finfo(jnp.float32).tiny))


def assign_to_centers(distances: Array, centers: Array) -> Array:
    """(B, n) int32 numbers of the nearest centers, each center belonging to itself whatever lies at distance 0."""
    numbers = jnp.broadcast_to(jnp.arange(centers.shape[1], dtype=jnp.int32), centers.shape)
    return put(nearest_center(distances, centers), centers, numbers)


def merge_clusters(x: Array, log_weight: Array, clusters: Array, k: int, eps: float = 1e-6) -> Array:
    """Weighted means: sum_i w_i x_i / (sum_i w_i + eps) over the members of every cluster.

    Args:
      x: (B, n, D).
      log_weight: (B, n) float32, log w_i; no w_i needs to be a float32 number.
      clusters: (B, n) int32 in 0..k-1.
      k: number of clusters.
      eps: as in the formula.

    Returns:
      (B, k, D) in the dtype of `x`.
    """
    member = clusters[:, None, :] == jnp.arange(k, dtype=jnp.int32)[None, :, None]
    logs = jnp.where(member, log_weight[:, None, :], -jnp.inf)
    # Numerator and denominator are divided by the largest weight of the cluster, where that exceeds 1.
    largest = jax.lax.stop_gradient(jnp.maximum(logs.max(-1, keepdims=True), 0.0))
    share = jnp.exp(logs - largest)
    share = share / (share.sum(-1, keepdims=True) + eps * jnp.exp(-largest))
    return jnp.einsum("bkn,bnd->bkd", share.astype(x.dtype), x, preferred_element_type=jnp.float32).astype(x.dtype)


def sinkhorn(scores: Array, iterations: int) -> Array:
    """Optimal transport between m centers and n tokens with uniform marginals, in logarithms.

    Starting from v = 0, alternates u_k = -log(m + n) - logsumexp_i(s_ki + v_i) and v_i = -log(m + n) -
    logsumexp_k(s_ki + u_k); the result is (m + n) exp(s + u + v).

    Args:
      scores: (B, m, n) float32, already divided by the regularisation.
      iterations: rounds; at least 1.

    Returns:
      (B, m, n) float32; every column sums to 1.
    """
    _, m, n = scores.shape
    marginal = -math.log(m + n)

    def step(carry: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        v = carry[1]
        u = marginal - jax.nn.logsumexp(scores + v, axis=2, keepdims=True)
        return (u, marginal - jax.nn.logsumexp(scores + u, axis=1, keepdims=True)), None

    start = (jnp.zeros_like(scores[:, :, :1]), jnp.zeros_like(scores[:, :1]))
    (u, v), _ = jax.lax.scan(step, start, None, length=iterations, unroll=min(iterations, 4))
    return jnp.exp(scores + u + v - marginal)


def quantiles(k: int) -> np.ndarray:
    """The points 1/2K, 3/2K, ... below (2K - 1)/2K at which a distribution function is read, float32.

    That is K - 1 of them, or K where the floating-point length of the range rounds up: K = 3, 7, 12, 14, 19, ...
    (torch.arange, whose length this reproduces).

    >>> len(quantiles(6)), len(quantiles(7))
    (5, 7)
    """
    begin, end, step = 1 / (2 * k), (2 * k - 1) / (2 * k), 2 / (2 * k)
    return (begin + np.arange(math.ceil((end - begin) / step)) * step).astype(np.float32)


def sample_by_quantiles(cdf: Array, points: np.ndarray, valid: Array, k: int) -> tuple[Array, Array]:
    """Inverse transform sampling without repetition: for every point the token whose cdf value is nearest.

    Args:
      cdf: (B, n) float32, growing along the tokens.
      points: quantiles, static.
      valid: (B, n) bool; others are never sampled.
      k: static size of the result, at least min(n, the number of points).

    Returns:
      (B, k) int32 indices, the sampled ones first and ascending, and (B, k) bool, which those are.
    """
    gap = jnp.abs(cdf[:, None, :] - jnp.asarray(points)[None, :, None])
    picked = first_lowest(jnp.where(valid[:, None, :], gap, jnp.inf), axis=2)[0]
    tokens = jnp.arange(cdf.shape[1], dtype=jnp.int32)
    sampled = (picked[:, :, None] == tokens).any(axis=1)
    index = top(sampled.astype(jnp.float32), k)  # ties in ascending order: the sampled ones, then the others
    return index, gather(sampled, index)


def centroids(assignment: Array, places: Array) -> Array:
    """Where soft clusters are: (B, m, n) weights and (B, n, C) places to (B, m, C), means by normalised weights."""
    weights = assignment.astype(jnp.float32)
    total = weights.sum(axis=-1, keepdims=True)
    return jnp.einsum("bmn,bnc->bmc", weights, places) / jnp.where(total > 0, total, 1.0)
