"""MCTF: parity with the release, its matching by hand, the attention of fused tokens, consistency, limits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from golden import Golden, close, random_variables
from train_tools import batch_of, tiny_config

import slimvit_jax as slim
from slimvit_jax import losses
from slimvit_jax.errors import SlimError
from slimvit_jax.methods import mctf
from slimvit_jax.ops import fusion, merge
from slimvit_jax.tokens import Aux
from slimvit_jax.training import build, step

TINY = dict(img_size=(24, 16), patch_size=4, embed_dim=32, depth=3, num_heads=2, num_classes=5)  # 24 patches


def test_golden():
    golden = Golden.load("mctf")
    model, variables = golden.model("mctf", r=4, layers=tuple(range(2, 10)), track_source=True)
    logits, aux = jax.jit(lambda v, x: model.apply(v, x, return_aux=True))(variables, golden.images)
    close(logits, golden.out("logits"))
    np.testing.assert_array_equal(np.add(model.slim.plan.mlp, 1), golden.out("tokens_after_block"))
    source = np.asarray(aux.taps["source"])
    smallest = np.where(source, np.arange(source.shape[2]), source.shape[2]).min(axis=2)
    np.testing.assert_array_equal(smallest, golden.out("order_8"))
    np.testing.assert_array_equal(np.take_along_axis(smallest, source.argmax(axis=1), axis=1), golden.out("group_8"))
    np.testing.assert_array_equal(aux.taps["size"], golden.out("size_8"))
    assert aux.kept is None
    assert slim.create_model("vit", method="mctf", depth=9, img_size=28, patch_size=4, r=4).slim.plan == model.slim.plan


def test_matching_by_hand():
    """Seven tokens, the first protected: 2 goes to 3; then 3, with 2, and 1 go to 4 and 6."""
    scores = jnp.asarray([[[9, 9, 9], [0.1, 0.9, 0.3], [0.2, 0.8, 0.1], [0.6, 0.2, 0.5]]], jnp.float32)
    matching = fusion.bidirectional_matching(scores, 3, 1)
    np.testing.assert_array_equal(matching.held, [[0, 4, 6, 5]])
    owner = merge.merge_owner(matching, jnp.arange(7)[None])
    np.testing.assert_array_equal(owner, [[0, 2, 1, 1, 1, 3, 2]])
    np.testing.assert_array_equal(merge.merge_sum(matching, jnp.ones((1, 7))), [[1, 3, 2, 1]])
    one_way = fusion.bidirectional_matching(scores, 2, 1, both_ways=False)
    np.testing.assert_array_equal(one_way.held, [[0, 6, 1, 3, 5]])
    np.testing.assert_array_equal(merge.merge_owner(one_way, jnp.arange(7)[None]), [[0, 2, 3, 3, 3, 4, 1]])


@pytest.mark.parametrize("protected", [0, 1, 2, 5])
def test_protected_tokens_stay_in_front_and_nobody_joins_them(protected):
    scores = jax.random.uniform(jax.random.key(0), (3, 8, 7))
    matching = fusion.bidirectional_matching(scores, 4, protected)
    np.testing.assert_array_equal(matching.held[:, :protected], np.tile(np.arange(protected), (3, 1)))
    owner = np.asarray(merge.merge_owner(matching, jnp.tile(jnp.arange(15), (3, 1))))
    assert (owner[:, protected:] >= protected).all() and (owner[:, :protected] == np.arange(protected)).all()
    assert all(len(set(row)) == 11 for row in owner)


def test_unimportant_and_small_tokens_are_wanted():
    x = jnp.ones((1, 4, 2))
    received, size = jnp.asarray([[4.0, 1.0, 1.0, 2.0]]), jnp.asarray([[1.0, 1.0, 2.0, 1.0]])
    score = fusion.attraction(x, received, size, 1.0, 1.0, 1.0)
    np.testing.assert_allclose(score[0], [[0.25, 0.125], [0.5, 0.25]], rtol=1e-6)
    opposite = fusion.attraction(x * jnp.asarray([1.0, -1, 1, -1])[:, None], received, size, 2.0, 20.0, 40.0)
    np.testing.assert_allclose(opposite, 0, atol=1e-3)
    assert np.isfinite(fusion.attraction(0 * x, received, size, 2.0, 20.0, 40.0)).all()


def test_attention_of_fused_tokens_is_the_aggregated_map():
    """Copying values back to the sources and averaging what was read equals cutting up the map itself."""
    rng = np.random.default_rng(0)
    attention = jax.nn.softmax(jnp.asarray(rng.normal(size=(2, 3, 9, 9)), jnp.float32))
    weight = jnp.asarray(rng.uniform(0.5, 2, size=(2, 9)), jnp.float32)
    values = jnp.asarray(rng.normal(size=(2, 6, 3, 4)), jnp.float32)
    matching = fusion.bidirectional_matching(jnp.asarray(rng.uniform(size=(2, 5, 4))), 3, 1)
    read = jnp.einsum("bhqk,bkhd->bqhd", attention, merge.unmerge(matching, values))
    ours, _ = merge.merge_weighted(matching, read.reshape(2, 9, 12), weight)
    owner = merge.merge_owner(matching, jnp.tile(jnp.arange(9), (2, 1)))
    groups = merge.membership(owner, 6).astype(jnp.float32)
    rows = groups * weight[:, None]
    cut = jnp.einsum("bgq,bhqk,bmk->bhgm", rows / rows.sum(axis=2, keepdims=True), attention, groups)
    np.testing.assert_allclose(ours, jnp.einsum("bhgm,bmhd->bghd", cut, values).reshape(2, 6, 12), atol=1e-5)


def test_counts_and_cost():
    small = slim.create_model("deit_small_patch16_224", method="mctf", r=16)
    assert small.slim.plan.mlp == (196, 180, 164, 148, 132, 116, 100, 84, 68, 52, 36, 20)  # 197 to 21, the release's
    assert round(slim.flops(small).total / 1e9, 1) == 2.6  # the paper's table for DeiT-S
    fast = slim.create_model("deit_small_patch16_224", method="mctf", r=0.35, layers=(4, 7, 10)).slim.plan
    assert sorted(set(fast.mlp))[::-1] == [196, 128, 84, 55]
    assert slim.create_model("vit", method="mctf", r=16, **TINY).slim.plan.mlp == (24, 12, 9)
    assert slim.create_model("vit", method="mctf", r=0.9, **TINY).slim.plan.mlp == (24, 12, 9)
    tiny = slim.create_model("vit", method="mctf", **{**TINY, "img_size": 8})
    assert tiny.slim.plan.mlp == (4, 4, 4)  # nothing to fuse


def test_equal_patches_and_no_images():
    model = slim.create_model("vit", method="mctf", r=5, **TINY)
    apply = jax.jit(model.apply)
    variables = random_variables(model)
    assert np.isfinite(apply(variables, jnp.zeros((2, 24, 16, 3)))).all()
    assert jax.jit(model.apply)(variables, jnp.zeros((0, 24, 16, 3))).shape == (0, 5)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"r": 1.5}, "r=1.5"),
        ({"r": True}, "r=True"),
        ({"r": -1}, "r=-1"),
        ({"layers": (0, 2)}, r"layers=\(0, 2\) must lie in 1"),
        ({"layers": (2, 4)}, r"layers=\(2, 4\) must lie in 1..3"),
        ({"tau_info": 0}, "tau_info=0"),
        ({"bidirectional": 1}, "bidirectional=1"),
        ({"consistency_r": (0, -1)}, "consistency_r"),
        ({"consistency_r": 3}, "consistency_r=3"),
        ({"consistency_r": (1,), "class_token": False, "global_pool": "avg"}, "no class token"),
    ],
)
def test_bad_options(options, words):
    with pytest.raises(SlimError, match=words):
        slim.create_model("vit", method="mctf", **TINY, **options)


# Token reduction consistency -----------------------------------------------------------------------------------------


def staged(rate=0.0, **options):
    """A stage of the method on digits, its state, and a batch of which the last row does not count."""
    config = tiny_config()
    config.method.name = "mctf"
    config.method.options = {"r": 4, **options}
    config.stages.backbone.update(trainable="all", warmup_epochs=0.0, label_smoothing=0.1)
    config.stages.backbone.lr.update(backbone=rate, method=rate)
    stage = build.build_stage(config, "backbone", 5)
    variables = random_variables(stage.model)
    batch = batch_of()
    batch["mask"] = batch["mask"].at[-1].set(0.0)
    return stage, stage.state(variables, None), batch


def reported(stage, metrics):
    return dict(zip(step.metric_names(stage.options.loss_weights), np.asarray(metrics), strict=True))


def by_hand(variables, model, other, batch):
    """The three losses of two passes, out of the two models alone."""
    images, labels = batch["image"][:-1], jax.nn.one_hot(batch["label"][:-1], 10)
    passes = [
        m.apply(variables, images, train=True, return_aux=True, rngs={"dropout": jax.random.key(0)})
        for m in (model, other)
    ]
    (logits, aux), (others, of_other) = passes
    smoothed = 0.9 * labels + 0.01
    entropy = lambda z: -(smoothed * jax.nn.log_softmax(z)).sum(axis=1).mean()
    sure = (jax.nn.softmax(logits) * labels).sum(axis=1) > mctf.CONFIDENT
    distance = ((aux.features[:, 0] - jax.lax.stop_gradient(of_other.features[:, 0])) ** 2).mean(axis=1)
    return entropy(logits), entropy(others), jnp.where(sure, distance, 0).sum() / jnp.maximum(sure.sum(), 1)


def test_a_step_learns_by_both_passes(monkeypatch):
    monkeypatch.setattr(mctf, "CONFIDENT", 0.1)  # some images of random weights
    stage, state, batch = staged(consistency_r=(1,))
    assert stage.model.slim.plan.mlp[-1] == 9 and stage.options.loss_weights["consistency"] == 3.0
    _, metrics = jax.jit(stage.step_function())(state, batch)
    got = reported(stage, metrics)
    other = stage.model.clone(slim=stage.model.slim.clone(r=1))
    total = lambda params: sum(
        weight * loss
        for weight, loss in zip((1, 1, 3), by_hand({"params": params}, stage.model, other, batch), strict=True)
    )
    want, gradient = jax.jit(jax.value_and_grad(total))(state.params)
    parts = jax.jit(lambda v: by_hand(v, stage.model, other, batch))({"params": state.params})
    names = ("loss_classification", "loss_second_classification", "loss_consistency")
    np.testing.assert_allclose([got[name] for name in names], parts, rtol=1e-4)
    assert got["loss_consistency"] > 1e-3
    np.testing.assert_allclose(got["loss"], want, rtol=1e-4)
    np.testing.assert_allclose(got["grad_norm"], optax.global_norm(gradient), rtol=1e-3)


def test_every_step_draws_another_second_pass():
    stage, state, batch = staged(consistency_r=(0, 3))
    run, seen = jax.jit(stage.step_function()), []
    for _ in range(12):
        state, metrics = run(state, batch)
        seen.append(float(reported(stage, metrics)["loss_second_classification"]))
    own = []
    for r in (0, 3):
        other = stage.model.clone(slim=stage.model.slim.clone(r=r))
        own.append(float(by_hand({"params": state.params}, stage.model, other, batch)[1]))
    nearest = [int(np.abs(np.subtract(own, value)).argmin()) for value in seen]
    assert set(nearest) == {0, 1}
    np.testing.assert_allclose(seen, [own[i] for i in nearest], rtol=1e-5)


def test_one_pass_by_default():
    stage, _, _ = staged()
    assert stage.options.loss_weights == {"classification": 1.0} and not stage.model.slim.second_passes
    both = slim.create_model("vit", method="mctf", **{**TINY, "consistency_r": (0, 2)})
    assert slim.flops(both).total == slim.flops(slim.create_model("vit", method="mctf", **TINY)).total
    with pytest.raises(SlimError, match="second pass"):
        both.losses(jnp.zeros((2, 5)), Aux((), None, None, jnp.zeros((2, 3, 32))), slim.Targets(jnp.eye(5)[:2]))


def test_confident_images_by_hand():
    logits = jnp.log(jnp.asarray([[0.5, 0.3, 0.2], [0.2, 0.3, 0.5], [0.1, 0.8, 0.1]]))
    labels = jnp.asarray([[1.0, 0, 0], [0.6, 0.4, 0], [0.05, 0.9, 0.05]])
    np.testing.assert_allclose(losses.confidence(logits, labels), [0.5, 0.5, 0.8], rtol=1e-6)
    features, others = jnp.asarray([[1.0, 2], [0, 0], [5, 5]]), jnp.asarray([[0.0, 0], [9, 9], [5, 6]])
    value = losses.consistency(features, others, jnp.asarray([1.0, 0, 1]), jnp.ones(3))
    np.testing.assert_allclose(losses.mean(value), (2.5 + 0.5) / 2)
    padded = losses.consistency(features, others, jnp.ones(3), jnp.asarray([1.0, 0, 1]))
    np.testing.assert_allclose(losses.mean(padded, jnp.asarray([1.0, 0, 1])), (2.5 + 0.5) / 2)
    nobody = jax.grad(lambda f: losses.consistency(f, others, jnp.zeros(3)).sum())(features)
    np.testing.assert_array_equal(nobody, 0)
