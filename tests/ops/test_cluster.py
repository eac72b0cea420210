"""The algebra of clustering and sampling, against literal float64 code and by hand."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from slimvit_jax.ops import cluster

RANDOM = np.random.default_rng(3)


def distances_of(x):
    return np.sqrt(((x[:, :, None] - x[:, None]) ** 2).sum(-1))


def test_distances_do_not_lose_digits_to_a_common_offset():
    x = RANDOM.normal(size=(2, 12, 5))
    ours = cluster.pairwise_distances(jnp.float32(x + 300.0))
    np.testing.assert_allclose(ours, distances_of(np.float32(x + 300.0).astype(np.float64)), atol=3e-5)
    assert (np.diagonal(ours, axis1=1, axis2=2) == 0).all()


def medoids_one_by_one(distances, weight, centers, rounds):
    """Literally: cluster after cluster, rows of other clusters set to a large number."""
    centers = list(centers)
    for _ in range(rounds):
        assignment = distances[:, centers].argmin(1)
        for k in range(len(centers)):
            weighted = distances * weight[:, None]
            weighted[assignment != k] = 1e6
            centers[k] = weighted.sum(1).argmin()
    return centers, distances[:, centers].argmin(1)


@pytest.mark.parametrize(("n", "k", "rounds"), [(30, 7, 3), (17, 16, 1), (9, 1, 5)])
def test_k_medoids_all_at_once_is_cluster_after_cluster(n, k, rounds):
    distances, weight = distances_of(RANDOM.normal(size=(3, n, 4))), RANDOM.uniform(0.1, 1, (3, n))
    start = np.argsort(-weight, axis=1)[:, :k]
    centers, clusters = cluster.k_medoids(jnp.float32(distances), jnp.float32(weight), jnp.int32(start), rounds)
    for b in range(3):
        expected = medoids_one_by_one(distances[b], weight[b], start[b], rounds)
        np.testing.assert_array_equal(centers[b], expected[0])
        np.testing.assert_array_equal(clusters[b], expected[1])


def test_k_medoids_of_identical_tokens_keeps_its_medoids():
    same = jnp.zeros((1, 6, 6))
    centers, clusters = cluster.k_medoids(same, jnp.ones((1, 6)), jnp.int32([[4, 2, 1]]), 3)
    np.testing.assert_array_equal(centers[0, 1:], [2, 1])
    np.testing.assert_array_equal(clusters, np.zeros((1, 6)))


def test_far_apart_on_a_line():
    x = np.float32([[0, 1, 4, 9, 10]])[..., None]
    chosen = cluster.far_apart(jnp.float32(distances_of(x)), jnp.int32([1]), 5)
    # From 1: the farthest is 10 (at distance 9); then 0 (10 away from 10), 9 (9 from 0), 4.
    np.testing.assert_array_equal(chosen, [[1, 4, 0, 3, 2]])


def test_density_peaks_one_by_one():
    distances, k = distances_of(RANDOM.normal(size=(2, 14, 3))), 4
    ours = np.exp(cluster.peak_scores(jnp.float32(distances), k))
    for b in range(2):
        density = np.exp(-(np.sort(distances[b], axis=1)[:, :k] ** 2).mean(1))
        for i in range(14):
            denser = density > density[i]
            delta = distances[b, i, denser].min() if denser.any() else distances[b].max()
            np.testing.assert_allclose(ours[b, i], density[i] * delta, rtol=1e-5)


def test_a_center_belongs_to_itself():
    distances = jnp.float32(distances_of(np.zeros((1, 4, 2))))
    np.testing.assert_array_equal(cluster.assign_to_centers(distances, jnp.int32([[2, 3]])), [[0, 0, 0, 1]])


def test_merge_clusters_by_hand():
    x = jnp.float32([[[1.0], [2.0], [3.0], [10.0]]])
    merged = cluster.merge_clusters(x, jnp.log(jnp.float32([[1, 1, 2, 4]])), jnp.int32([[0, 1, 1, 0]]), 3, eps=1.0)
    np.testing.assert_allclose(merged[0, :, 0], [41 / 6, 8 / 4, 0.0], rtol=1e-6)


@pytest.mark.parametrize(("regularisation", "rounds"), [(1.0, 3), (0.05, 30)])
def test_sinkhorn_against_float64(regularisation, rounds):
    scores = RANDOM.uniform(-1, 1, (2, 5, 9)) / regularisation
    ours = np.asarray(cluster.sinkhorn(jnp.float32(scores), rounds))
    plan, v = np.exp(scores), np.ones((2, 1, 9))
    for _ in range(rounds):
        u = 1 / 14 / (plan * v).sum(2, keepdims=True)
        v = 1 / 14 / (plan * u).sum(1, keepdims=True)
    np.testing.assert_allclose(ours, 14 * plan * u * v, rtol=2e-5, atol=1e-7)
    np.testing.assert_allclose(ours.sum(1), 1, rtol=1e-5)


def test_quantiles():
    np.testing.assert_allclose(cluster.quantiles(4), [1 / 8, 3 / 8, 5 / 8])
    odd = [k for k in range(2, 60) if len(cluster.quantiles(k)) == k]
    assert odd == [3, 7, 12, 14, 19, 27, 34, 35, 36, 39, 42, 47, 48, 51, 55, 56, 58]  # as torch.arange


def test_sampling_one_by_one():
    score = np.random.default_rng(0).uniform(0, 1, (4, 20)) ** 4
    valid = np.arange(20) < np.array([[20], [20], [13], [2]])
    score = np.where(valid, score, 0)
    cdf = np.float32(np.cumsum(score / score.sum(1, keepdims=True), axis=1))  # small scores tie in float32
    points = cluster.quantiles(12)
    index, drawn = cluster.sample_by_quantiles(jnp.asarray(cdf), points, jnp.asarray(valid), 12)
    for b in range(4):
        n = valid[b].sum()
        expected = np.unique([np.abs(cdf[b, :n] - np.float32(q)).argmin() for q in points])
        np.testing.assert_array_equal(index[b][drawn[b]], expected)
        assert not drawn[b][len(expected) :].any()
        assert len(set(np.asarray(index[b]))) == 12
