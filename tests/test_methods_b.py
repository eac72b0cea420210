"""ATS, K-Medoids, DPC-KNN, Sinkhorn and PatchMerger: parity with the official code, the algebra by hand, properties."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import Golden, close

import slimvit_jax as slim
from slimvit_jax.errors import SlimError
from slimvit_jax.ops import cluster

METHODS = ("ats", "dpcknn", "kmedoids", "patchmerger", "sinkhorn")
TINY = dict(img_size=24, patch_size=4, embed_dim=24, depth=3, num_heads=2, num_classes=5)  # 36 patches
TWO = dict(locations=(2, 3))
IMAGES = jax.random.normal(jax.random.key(7), (3, 24, 24, 3))
RANDOM = np.random.default_rng(3)


@functools.cache
def built(method=None, family="vit", **options):
    """(model, variables): drawn from the shapes, larger than at initialisation, where every choice is a near tie."""
    model = slim.create_model(family, method=method, **{**TINY, **options})
    shapes = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
    draw = np.random.default_rng(5)
    return model, jax.tree.map(lambda leaf: jnp.float32(0.2 * draw.normal(size=leaf.shape) + (leaf.ndim == 1)), shapes)


def run(model, variables, images, **options):
    apply = lambda v, x: model.apply(v, x, return_aux=True, **options)
    return jax.jit(apply)(variables, images)


# Goldens ---------------------------------------------------------------------------------------------------------


@functools.cache
def golden_run(case):
    golden = Golden.load(case)
    model, variables = golden.model(case)
    return golden, model, *run(model, variables, golden.images)


@pytest.mark.parametrize("case", METHODS)
def test_golden_logits(case):
    golden, model, logits, _ = golden_run(case)
    close(logits, golden.out("logits"))
    if case != "ats":  # it pads to the longest sample of a batch there
        np.testing.assert_array_equal(np.add(model.slim.plan.mlp, 1), golden.out("tokens_after_block"))


@pytest.mark.parametrize("case", ["dpcknn", "kmedoids"])
def test_golden_clusters(case):
    golden, _, _, aux = golden_run(case)
    held = np.tile(np.arange(196), (2, 1))
    for stage, layer in enumerate((3, 6, 9)):
        np.testing.assert_array_equal(aux.taps["centers"][stage], golden.out(f"centers_layer{layer}"))
        np.testing.assert_array_equal(aux.taps["clusters"][stage], golden.out(f"cluster_layer{layer}"))
        if case == "kmedoids":
            held = np.take_along_axis(held, golden.out(f"centers_layer{layer}"), axis=1)
            np.testing.assert_array_equal(aux.kept[stage], held)
    assert (aux.kept is None) == (case == "dpcknn")


@pytest.mark.parametrize("case", ["patchmerger", "sinkhorn"])
def test_golden_assignment(case):
    golden, _, _, aux = golden_run(case)
    close(aux.taps["assignment"][0], golden.out("soft_assign_layer3"), 1e-6)
    assert aux.kept is None


def test_golden_samples():
    golden, model, _, aux = golden_run("ats")
    held = np.tile(np.arange(196), (2, 1))
    for kept, layer in zip(aux.kept, (3, 6, 9), strict=True):
        close(model.slim.points[layer + 1], golden.out(f"sample_steps_layer{layer}"), 1e-6)
        official = golden.out(f"kept_layer{layer}")
        held = np.where(official >= 0, np.take_along_axis(held, np.maximum(official, 0), axis=1), -1)
        np.testing.assert_array_equal(kept[:, : held.shape[1]], held)
        assert (kept[:, held.shape[1] :] == -1).all()


# Algebra ---------------------------------------------------------------------------------------------------------


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


def test_follow_composes_clusterings():
    owner = cluster.follow(jnp.int32([[0, 1, 1, 2]]), jnp.int32([[1, 0, 1]]))
    np.testing.assert_array_equal(owner, [[1, 0, 0, 1]])


# Properties ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("family", "extra"),
    [("vit", ()), ("deit_distilled", (("reg_tokens", 2), ("keep_rate", (0.4, 0.9)), ("dtype", "bfloat16")))],
    ids=["vit", "distilled_registers_bfloat16"],
)
def test_budgets_and_batches(method, family, extra):
    model, variables = built(method, family, **TWO, **dict(extra))
    logits, aux = run(model, variables, IMAGES)
    counts = (25, 17) if not extra else (14, 12)
    inside = method == "ats"
    counts = tuple(len(cluster.quantiles(c + 1)) for c in counts) if inside else counts  # one more for a few K
    assert aux.token_counts == ((36, 36, counts[0]) if inside else (36, *counts))
    assert model.slim.plan.mlp == (36, *counts)
    assert aux.features.shape[1] == counts[1] + model.geometry.prefix_tokens
    assert logits.shape == (3, 5) and np.isfinite(logits).all()
    assert logits.dtype == jnp.float32 and aux.features.dtype == jnp.dtype(model.dtype)
    if aux.kept is not None:
        assert [k.shape for k in aux.kept] == [(3, n) for n in counts]
        for kept in aux.kept:
            real = np.asarray(kept[1][kept[1] >= 0])
            assert len(set(real)) == len(real)
    if not extra:
        alone, single = run(model, variables, IMAGES[1:2])
        np.testing.assert_allclose(alone, logits[1:2], atol=2e-5)
        jax.tree.map(lambda one, many: np.testing.assert_array_equal(one, many[1:2]), single.kept, aux.kept)
    report = slim.flops(model)
    assert report.method == sum(model.slim.extra_flops().values()) > 0
    assert report.total < slim.flops(slim.create_model(family, **TINY, **{k: v for k, v in extra if "reg" in k})).total


@pytest.mark.parametrize("method", METHODS)
def test_training_gradients(method):
    model, variables = built(method, **TWO)
    labels = jax.nn.one_hot(jnp.arange(3), 5)

    def loss(params, images):
        logits, aux = model.apply(
            {"params": params}, images, train=True, return_aux=True, rngs={"dropout": jax.random.key(1)}
        )
        return sum(model.losses(logits, aux, slim.Targets(labels)).values()).mean()

    step = jax.jit(jax.value_and_grad(loss))
    value, gradient = step(variables["params"], IMAGES)
    step(variables["params"], -IMAGES)
    assert step._cache_size() == 1 and np.isfinite(value)
    for path, leaf in jax.tree.leaves_with_path(gradient):
        assert np.isfinite(leaf).all() and np.any(leaf), jax.tree_util.keystr(path)
    assert "callback" not in str(jax.make_jaxpr(loss)(variables["params"], IMAGES))


@functools.cache
def dense_run():
    return jax.jit(built()[0].apply)


def dense_logits(variables):
    """Of the same backbone without method."""
    plain = {name: leaf for name, leaf in variables["params"].items() if name != "slim"}
    return dense_run()({"params": plain}, IMAGES)


@pytest.mark.parametrize("method", METHODS)
def test_keeping_everything(method):
    model, variables = built(method, **TWO, keep_rate=1.0)
    difference = np.abs(np.subtract(run(model, variables, IMAGES)[0], dense_logits(variables))).max()
    assert (difference < 1e-4) == model.slim.keep_all_is_dense


@pytest.mark.parametrize("method", ["dpcknn", "kmedoids", "patchmerger", "sinkhorn"])
def test_without_class_token(method):
    model, variables = built(method, **TWO, class_token=False, global_pool="avg")
    shape = jax.eval_shape(model.apply, variables, IMAGES).shape
    assert shape == (3, 5)


def test_averages_leave_padding_out():
    model, variables = built("ats", **TWO, global_pool="avg", fc_norm=False)
    logits, aux = run(model, variables, IMAGES)
    there = np.asarray(aux.kept[-1] >= 0)
    assert not there.all()
    patches = np.asarray(aux.features[:, 1:])
    pooled = np.stack([p[m].mean(0) for p, m in zip(patches, there, strict=True)])
    head = variables["params"]["head"]
    np.testing.assert_allclose(logits, pooled @ head["kernel"] + head["bias"], rtol=1e-4, atol=1e-4)


def test_keeping_everything_still_samples():
    model, variables = built("ats", **TWO, keep_rate=(1.0, 0.2))
    _, aux = run(model, variables, IMAGES)
    assert [k.shape[1] for k in aux.kept] == [36, len(cluster.quantiles(8))] and (aux.kept[0] == -1).any()
    assert not (aux.kept[1][:, 0] == -1).any()


@pytest.mark.parametrize("method", ["ats", "dpcknn", "kmedoids"])
def test_imposed_scores(method):
    model, variables = built(method, **TWO)
    wanted = jnp.tile(jnp.where(jnp.arange(36) < 25, 1.0 + jnp.arange(36), 0.0), (3, 1))
    _, aux = run(model, variables, IMAGES, scores=wanted)
    if method == "ats":
        assert (aux.kept[0] < 25).all()
    elif method == "dpcknn":
        np.testing.assert_array_equal(aux.taps["centers"][0], np.tile(np.arange(25)[::-1], (3, 1)))


def test_equal_weights():
    for method in ("dpcknn", "kmedoids"):
        model, variables = built(method, **TWO, equal_weight=True)
        assert "slim" not in variables["params"]
        assert np.isfinite(run(model, variables, IMAGES)[0]).all()
    first = slim.create_model("vit", method="kmedoids", equal_weight=True, **{**TINY, "locations": (1,)})
    assert first.slim.plan.attention == (25, 25, 25)


@pytest.mark.parametrize(
    ("method", "options", "words"),
    [
        ("ats", dict(keep_rate=0.0), "keep_rate=0.0"),
        ("ats", dict(locations=(4, 7, 13)), "1..12"),
        ("kmedoids", dict(locations=(1, 4)), "begin at 2"),
        ("kmedoids", dict(cluster_iters=0), "cluster_iters=0"),
        ("kmedoids", dict(equal_weight="no"), "equal_weight='no'"),
        ("dpcknn", dict(k_neighbors=0), "k_neighbors=0"),
        ("dpcknn", dict(k_neighbors=200), "1..196"),
        ("dpcknn", dict(cluster_iters=3), "cluster_iters"),
        ("sinkhorn", dict(sinkhorn_eps=0), "sinkhorn_eps=0"),
        ("sinkhorn", dict(cluster_iters=1.5), "cluster_iters=1.5"),
        ("patchmerger", dict(keep_rate=(0.7, 0.7)), "2 rates for 3 locations"),
    ],
)
def test_options_are_refused_in_one_line(method, options, words):
    with pytest.raises(SlimError) as caught:
        slim.create_model("deit_tiny_patch16_224", method=method, **options)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("method", ["dpcknn", "patchmerger", "sinkhorn"])
def test_official_names(method):
    model, variables = built(method, **TWO)
    names = {name for name in slim.to_torch(model, variables) if name.startswith("cluster_layers")}
    leaves = {"dpcknn": ("score.weight", "score.bias"), "sinkhorn": ("v",)}
    leaves["patchmerger"] = ("queries", "norm.weight", "norm.bias")
    assert names == {f"cluster_layers.{i}.{leaf}" for i in range(2) for leaf in leaves[method]}
