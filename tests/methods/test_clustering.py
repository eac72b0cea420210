"""ATS, K-Medoids, DPC-KNN, Sinkhorn and PatchMerger: parity with the official code, options, properties."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import close, golden_run, run, small

import slimvit_jax as slim
from slimvit_jax.errors import SlimError
from slimvit_jax.ops import cluster

METHODS = ("ats", "dpcknn", "kmedoids", "patchmerger", "sinkhorn")
TINY = dict(img_size=24, patch_size=4, embed_dim=24, depth=3, num_heads=2, num_classes=5)  # 36 patches
built = lambda method=None, family="vit", **options: small(family, method, **TINY | options)
TWO = dict(locations=(2, 3))
IMAGES = jax.random.normal(jax.random.key(7), (3, 24, 24, 3))


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
    assert (difference < 5e-3) == model.slim.keep_all_is_dense  # DPC-KNN: see test_matrix.py


@pytest.mark.parametrize("method", ["dpcknn", "kmedoids", "patchmerger", "sinkhorn"])
def test_without_class_token(method):
    model, variables = built(method, **TWO, class_token=False, global_pool="avg")
    shape = jax.eval_shape(model.apply, variables, IMAGES).shape
    assert shape == (3, 5)


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
