"""The dense model's logits as a target, which any method's stage can ask for."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from train_tools import batch_of, tiny_config

import slimvit_jax as slim
from slimvit_jax.errors import SlimError
from slimvit_jax.methods import METHODS
from slimvit_jax.training import build, step, validate


def staged(method, weights, rate=3e-2, **options):
    """A stage of this method with these weights of its losses, and its state, whose teacher believes in class 3."""
    config = tiny_config()
    config.method.name = method
    config.method.options = options
    config.stages.backbone.loss_weights = weights
    config.stages.backbone.update(trainable="all", warmup_epochs=0.0, weight_decay=0.0)
    config.stages.backbone.lr.update(backbone=rate, method=rate)
    stage = build.build_stage(config, "backbone", 100)
    teacher = build.init_variables(stage.teacher, 1)
    teacher["params"]["head"]["bias"] = jnp.zeros(10).at[3].set(5.0)
    return config, stage, stage.state(build.init_variables(stage.model, 0), teacher)


def options_of(method):
    """What fits a model of three layers and 16 patches, where the defaults do not."""
    if method in ("cropr", "mctf"):
        return {"pruning_rate": 2} if method == "cropr" else {"r": 2}
    located = "locations" in METHODS[method].__dataclass_fields__
    return {"locations": (2,)} if located and method not in ("ia_red2", "avit") else {}


@pytest.mark.parametrize("method", [*slim.list_methods()])
def test_every_method_can_learn_the_dense_logits(method):
    """A step traces, reports the loss beside the method's own, and leaves a state of the same shape."""
    config, stage, state = staged(method, {"distillation": 1.0}, **options_of(method))
    after, metrics = jax.eval_shape(stage.step_function(), state, batch_of())
    names = step.metric_names(stage.options.loss_weights)
    assert "loss_distillation" in names and metrics.shape == (len(names),)
    shapes = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)
    assert shapes(after) == shapes(state)


@pytest.mark.parametrize("method", ["life_regression", "evit", "tome", "dynamicvit"])
def test_training_brings_the_logits_nearer(method):
    """The reported loss is KL(teacher || student), whatever else the method learns, and training makes it smaller."""
    weights = {"classification": 0.0, "distillation": 1.0}
    config, stage, state = staged(method, weights, **options_of(method))
    batch = batch_of()
    names = step.metric_names(stage.options.loss_weights)
    run = jax.jit(stage.step_function())
    seen = []
    for _ in range(5):
        state, metrics = run(state, batch)
        seen.append(dict(zip(names, np.asarray(metrics), strict=True)))
    assert all(np.isfinite(value) for value in seen[-1].values())
    assert seen[-1]["loss_distillation"] < 0.9 * seen[0]["loss_distillation"]
    total = sum(weight * seen[0][f"loss_{name}"] for name, weight in stage.options.loss_weights.items())
    assert seen[0]["loss"] == pytest.approx(total, rel=1e-4)


def test_the_loss_is_the_divergence_from_the_teacher():
    # keeps every patch: the student is a dense model too
    config, stage, state = staged("topk", {"distillation": 2.0}, locations=(1, 2), keep_rate=1.0)
    images, labels = batch_of()["image"], jax.nn.one_hot(batch_of()["label"], 10)
    logits, aux = stage.model.apply(state.variables, images, train=True, return_aux=True)
    other = stage.teacher.apply(state.teacher, images)
    found = stage.model.losses(logits, aux, slim.Targets(labels, teacher=(other, aux)))
    p = np.asarray(jax.nn.softmax(other), np.float64)
    expected = (p * (np.log(p) - np.asarray(jax.nn.log_softmax(logits)))).sum(-1)
    np.testing.assert_allclose(found["distillation"], expected, rtol=1e-4)
    assert "distillation" not in stage.model.losses(logits, aux, slim.Targets(labels))
    same = stage.model.losses(logits, aux, slim.Targets(labels, teacher=(logits, aux)))
    assert np.abs(same["distillation"]).max() < 1e-6


def test_without_a_weight_no_teacher_runs():
    for weights in ({}, {"distillation": 0.0}):
        config = tiny_config()
        config.stages.backbone.loss_weights = weights
        stage = build.build_stage(config, "backbone", 5)
        assert stage.teacher is None and stage.options.loss_weights == {"classification": 1.0}


def test_a_method_with_its_own_distillation_keeps_one():
    _, stage, _ = staged("dynamicvit", {"distillation": 3.0}, locations=(1, 2))
    assert stage.options.loss_weights == {**stage.model.slim.loss_weights, "distillation": 3.0}


@pytest.mark.parametrize(
    ("stage", "weights", "words"),
    [
        ("dense", {"distillation": 1.0}, ["stages.dense", "'distillation'", "choices: classification"]),
        ("backbone", {"distillation": -1.0}, ["stages.backbone.loss_weights.distillation=-1.0"]),
        ("backbone", {"distillation": float("nan")}, ["distillation=nan"]),
        ("backbone", {"distillation": True}, ["distillation=True"]),
        ("backbone", {"dstillation": 1.0}, ["'dstillation'", "classification, distillation"]),
    ],
)
def test_bad_weights_are_named(stage, weights, words):
    config = tiny_config()
    config.stages[stage].loss_weights = weights
    with pytest.raises(SlimError) as caught:
        build.build_stage(validate(config), stage, 5)
    for word in words:
        assert word in str(caught.value)


def test_mixed_tokens_have_no_teacher():
    config = tiny_config()
    config.model.name = "lvvit"
    config.model.options = dict(img_size=32, embed_dim=16, depth=3, num_heads=2, num_classes=10, mix_token=True)
    config.model.options["token_labelling"] = True
    config.method.name = "topk"
    config.method.options = {"locations": (1, 2)}
    config.stages.backbone.loss_weights = {"distillation": 1.0}
    with pytest.raises(SlimError, match='mix_token=True: the loss "distillation" compares with a teacher'):
        build.build_stage(config, "backbone", 5)
