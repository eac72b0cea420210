"""DTEM: parity with the release, its state dict both ways, soft merging while training."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import Golden, close, random_variables

import slimvit_jax as slim
from slimvit_jax.errors import SlimError
from slimvit_jax.ops import soft_merge

TINY = dict(img_size=(20, 16), patch_size=4, embed_dim=32, depth=3, num_heads=2, num_classes=5)  # 20 patches


def test_golden_and_the_release_state_dict_both_ways():
    golden = Golden.load("dtem")
    model, variables = golden.model("dtem", r=12, feat_dim=16, track_source=True)
    logits, aux = jax.jit(lambda v, x: model.apply(v, x, return_aux=True))(variables, golden.images)
    close(logits, golden.out("logits"))
    np.testing.assert_array_equal(np.add(model.slim.plan.mlp, 1), golden.out("tokens_after_block"))
    source = np.asarray(aux.taps["source"])
    smallest = np.where(source, np.arange(source.shape[2]), source.shape[2]).min(axis=2)
    np.testing.assert_array_equal(smallest, golden.out("order_11"))
    np.testing.assert_array_equal(np.take_along_axis(smallest, source.argmax(axis=1), axis=1), golden.out("group_11"))
    np.testing.assert_array_equal(aux.taps["size"], golden.out("size_11"))
    assert aux.kept is None

    state, ours = golden.state(), slim.to_torch(model, variables)
    assert ours.keys() == state.keys()
    for name, value in state.items():
        np.testing.assert_array_equal(ours[name], value)
    stale = {name: value + 1 if name.endswith("attn.qkv.weight") else value for name, value in state.items()}
    again = slim.from_torch(model, stale)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), variables, again))


def test_a_plain_state_dict_needs_a_fresh_metric_to_be_asked_for():
    model = slim.create_model("vit", method="dtem", r=2, **TINY)
    dense = slim.create_model("vit", **TINY)
    state = slim.to_torch(dense, random_variables(dense))
    with pytest.raises(SlimError, match="metric_layer"):
        slim.from_torch(model, state)
    assert "metric_layer_2" in slim.from_torch(model, state, init_missing="metric_layer")["params"]["slim"]


def test_soft_edges_by_hand():
    """Cold, the best edges are chosen whole; no token gives more than itself; gradients reach the scores."""
    scores = jnp.asarray([[[0.9, 0.1, 0.0], [0.2, 0.8, 0.1], [0.3, 0.1, 0.2]]], jnp.float32)
    hard = soft_merge.soft_top_edges(scores, 2, 2, 0.1, 0.01)
    np.testing.assert_allclose(hard, [[[1, 0, 0], [0, 1, 0], [0, 0, 0]]], atol=1e-5)
    soft = soft_merge.soft_top_edges(scores, 2, 3, 0.5, 1.0)
    assert (soft.sum(axis=-1) <= 1 + 1e-6).all() and soft.min() >= 0
    gradient = jax.grad(lambda s: (soft_merge.soft_top_edges(s, 2, 3, 0.5, 1.0) * scores).sum())(scores)
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 1e-3


def test_soft_merge_by_hand():
    x = jnp.asarray([[[0.0], [3.0], [6.0], [9.0]]])
    share = jnp.asarray([[[1.0, 0.0], [0.25, 0.25]]])  # patch 0 joins 1 wholly; half of patch 2 stays
    merged, size, order = soft_merge.soft_merge(x, jnp.ones((1, 4)), share)
    np.testing.assert_allclose(size[0], [2.25, 1.25, 0.5, 0.0])
    np.testing.assert_array_equal(order[0], [2, 3, 1, 0])  # of (even: 0, 2; odd: 1, 3)
    np.testing.assert_allclose(merged[0, :, 0], [(0 + 3 + 1.5) / 2.25, (9 + 1.5) / 1.25, 6, 0], rtol=1e-6)
    assert np.isfinite(soft_merge.log_size(size)).all()


def test_training_merges_softly():
    model = slim.create_model("vit", method="dtem", r=4, **TINY)
    variables = random_variables(model)
    images = jax.random.normal(jax.random.key(0), (2, 20, 16, 3))
    soft = lambda model: jax.jit(
        lambda v: model.apply(v, images, train=True, return_aux=True, rngs={"dropout": jax.random.key(1)})[1],
    )(variables)
    aux = soft(model)
    assert aux.features.shape == (2, 21, 32) and aux.token_counts == (20, 20, 20)
    np.testing.assert_allclose(aux.taps["size"].sum(axis=1), 21, rtol=1e-5)  # size moves, none is lost
    # cold, the soft choice is nearly the hard one: about as many tokens are empty as leave at inference
    aux = soft(slim.create_model("vit", method="dtem", r=4, tau1=0.2, tau2=0.005, **TINY))
    assert (np.sort(aux.taps["size"])[:, 9] < 0.01).all() and np.isfinite(aux.features).all()


@pytest.mark.parametrize(
    "options, words",
    [
        ({"feat_dim": 0}, "feat_dim=0"),
        ({"k2": 1.5}, "k2=1.5"),
        ({"tau1": 0.0}, "tau1=0.0"),
        ({"tau2": True}, "tau2=True"),
        ({"r": 11}, "r=11"),
    ],
)
def test_bad_options(options, words):
    with pytest.raises(SlimError, match=words):
        slim.create_model("vit", method="dtem", **TINY, **options)
