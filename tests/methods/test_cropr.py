"""Cropr: parity with the release, scores by hand, what the auxiliary heads learn and touch, limits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import Golden, close, random_variables

import slimvit_jax as slim
from slimvit_jax.errors import SlimError
from slimvit_jax.losses import Targets

TINY = dict(img_size=(20, 16), patch_size=4, embed_dim=32, depth=4, num_heads=2, num_classes=5)  # 20 patches
CASES = {
    # the release's "avg" pools the class token, too
    "cropr_llf": dict(pruning_rate=16, llf=True, global_pool="avg", pool_include_prefix=True),
    "cropr_proj": dict(
        pruning_rate=7, llf=False, num_queries=2, query_heads=3, pre_attn_norm=True, q_proj=True, k_proj=True
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_golden(case):
    golden = Golden.load(case)
    backbone = {k: golden.meta["constructor_kwargs"][k] for k in ("img_size", "patch_size", "num_classes")}
    backbone |= {k: golden.meta["constructor_kwargs"][k] for k in ("embed_dim", "depth", "num_heads")}
    model = slim.create_model("vit", method="cropr", **backbone, **CASES[case])
    variables = slim.from_torch(model, golden.state(), inference=True)
    logits, aux = jax.jit(lambda v, x: model.apply(v, x, return_aux=True))(variables, golden.images)
    close(logits, golden.out("logits"))
    counts = golden.out("tokens_after_block")
    plan = model.slim.plan
    np.testing.assert_array_equal(np.minimum((*plan.attention[1:], plan.mlp[-1]), plan.mlp) + 1, counts)
    for module, kept in enumerate(aux.kept):  # the order of near neighbours is free
        np.testing.assert_array_equal(np.sort(kept + 1), np.sort(golden.out(f"kept_{module}")[:, 1:]))
    close(aux.scores, golden.out("score_0"), 1e-5)
    ours = slim.to_torch(model, variables, inference=True)
    assert ours.keys() == golden.state().keys()
    for name, value in golden.state().items():
        np.testing.assert_array_equal(ours[name], value)


def test_names_of_what_only_training_has():
    model = slim.create_model("vit", method="cropr", pruning_rate=3, query_heads=2, v_proj=True, **TINY)
    names = slim.to_torch(model, random_variables(model))
    own = {name.removeprefix("cropr.1.") for name in names if name.startswith("cropr.1.")}
    parts = {f"{module}.{part}" for module in ("proj", "mlp_norm", "mlp.fc1", "mlp.fc2") for part in ("weight", "bias")}
    heads = {f"head.{module}.{part}" for module in ("norm", "head") for part in ("weight", "bias")}
    assert own == {f"cross_attn.{name}" for name in parts | {"queries", "v.weight"}} | heads


def test_the_lowest_scores_leave_and_all_rejoin():
    model = slim.create_model("vit", method="cropr", pruning_rate=5, **TINY)
    assert model.slim.plan.mlp == (20, 14, 9, 20)
    variables = random_variables(model)
    images = jax.random.normal(jax.random.key(0), (2, 20, 16, 3))
    _, aux = jax.jit(lambda v: model.apply(v, images, return_aux=True))(variables)
    assert [k.shape[1] for k in aux.kept] == [14, 9] and aux.features.shape == (2, 21, 32)
    for scores, kept in zip(aux.scores, aux.kept[0], strict=True):
        np.testing.assert_array_equal(kept, np.argsort(-scores)[:14])
    assert slim.create_model("vit", method="cropr", pruning_rate=5, llf=False, **TINY).slim.plan.mlp == (20, 14, 9, 4)
    deep = slim.create_model("vit", method="cropr", pruning_rate=5, rejoin=4, **{**TINY, "depth": 5})
    assert deep.slim.plan.mlp == (20, 14, 9, 20, 20)


def test_auxiliary_heads_learn_from_their_own_loss_and_leave_the_backbone_alone():
    model = slim.create_model("vit", method="cropr", pruning_rate=3, num_queries=2, q_proj=True, k_proj=True, **TINY)
    images = jax.random.normal(jax.random.key(0), (2, 20, 16, 3))
    targets = Targets(labels=jax.nn.one_hot(jnp.arange(2), 5))

    def loss(params, name):
        logits, aux = model.apply(
            {"params": params}, images, train=True, return_aux=True, rngs={"dropout": jax.random.key(1)}
        )
        assert aux.taps["auxiliary_logits"][0].shape == (2, 2, 5)
        return model.losses(logits, aux, targets)[name].mean()

    gradients = jax.jit(jax.jacrev(lambda p: jnp.stack([loss(p, "classification"), loss(p, "auxiliary")])))(
        random_variables(model)["params"]
    )
    own = gradients.pop("slim")
    assert all(float(jnp.abs(leaf[1]).max()) == 0 for leaf in jax.tree.leaves(gradients))
    assert all(float(jnp.abs(leaf[0]).max()) == 0 < float(jnp.abs(leaf[1]).max()) for leaf in jax.tree.leaves(own))


@pytest.mark.parametrize(
    "options, words",
    [
        ({"pruning_rate": 10}, r"pruning_rate=10 drops 21 patches in 2 modules; .* 0..9"),
        ({"pruning_rate": -1}, "pruning_rate=-1"),
        ({"query_heads": 3}, "query_heads=3 does not divide"),
        ({"rejoin": 2}, "rejoin=2 leaves no layer"),
        ({"rejoin": 6, "pruning_rate": 2}, "rejoin=6"),
        ({"llf": "yes"}, "llf='yes'"),
    ],
)
def test_bad_options(options, words):
    with pytest.raises(SlimError, match=words):
        slim.create_model("vit", method="cropr", **{**TINY, **options})
