"""Evo-LeViT: the release's numbers and names, its plan, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import Golden, close, random_variables

import slimvit_jax as slim

GOLDEN = "evo_levit"
TINY = dict(img_size=64, embed_dim=(16, 24), depth=(2, 2), num_heads=(2, 3), key_dim=8, num_classes=5)
HALF = ((1, 0.5, 0.5, 0.5), (0.5, 0.5))


def load(**options):
    golden = Golden.load(GOLDEN)
    model = slim.create_model("evo_levit", **golden.meta["constructor_kwargs"], **options)
    return golden, model, slim.from_torch(model, golden.state())


def forward(model, **options):
    return jax.jit(lambda v, x: model.apply(v, x, return_aux=True, **options))


def test_golden_inference_selections_and_the_way_back():
    golden, model, variables = load()
    logits, aux = forward(model)(variables, golden.images)
    close(logits, golden.out("logits"))
    for i in range(3):
        close(aux.taps["class_attention"][i], golden.out(f"global_attn_stage{i}"), atol=1e-6)
        order, kept = golden.out(f"ori_indices_stage{i}"), int(golden.out(f"n_keep_stage{i}"))
        np.testing.assert_array_equal(aux.taps["order"][i], order)
        np.testing.assert_array_equal(aux.kept[i], order[:, :kept])
    back, state = slim.to_torch(model, variables), golden.state()
    assert set(back) == set(state)
    for name, value in state.items():
        np.testing.assert_array_equal(back[name], value, err_msg=name)


def test_golden_training_heads():
    golden, model, variables = load()
    _, aux = forward(model, train=True, rngs={"dropout": jax.random.key(0)})(variables, golden.images)
    names = {"head": "logits", "dist": "logits_dist", "class": "logits_cls", "class_dist": "logits_cls_dist"}
    for ours, theirs in names.items():
        close(aux.taps[f"{ours}_logits"], golden.out(f"train_{theirs}"))
    labels = jax.nn.one_hot(jnp.arange(2), 20)
    losses = model.losses(aux.taps["head_logits"], aux, slim.Targets(labels))
    assert set(losses) == set(model.loss_weights()) and all(value.shape == (2,) for value in losses.values())


@pytest.mark.parametrize(
    ("option", "result"), [("stage_wise_prune", "layerwise_logits"), ("learn_tradeoff", "fixed_tradeoff_logits")]
)
def test_golden_other_modes(option, result):
    golden, model, variables = load(**{option: False})
    close(forward(model)(variables, golden.images)[0], golden.out(result))


def test_plan_and_flops_agree_with_what_runs():
    model = slim.create_model("evo_levit", **TINY, prune_ratio=HALF)
    assert model.slim.plan.attention == (16, 9, 16, 3, 3) and model.slim.plan.mlp == (16, 9, 4, 3, 3)
    dense = slim.create_model("evo_levit", **TINY, prune_ratio=((1, 1, 1, 1), (1, 1)))
    assert dense.slim.plan.attention == (16, 16, 16, 4, 4)
    assert slim.flops(model).total < slim.flops(dense).total
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    assert variables == jax.eval_shape(dense.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    _, aux = jax.eval_shape(lambda v: model.apply(v, jnp.zeros((2, 64, 64, 3)), return_aux=True), variables)
    assert [kept.shape for kept in aux.kept] == [(2, 8), (2, 2)] and aux.features.shape == (2, 5, 24)


def test_a_stage_of_one_patch_runs_on_its_representative_alone():
    model = slim.create_model("evo_levit", **TINY | {"img_size": 32}, prune_ratio=HALF)
    assert model.slim.plan.attention == (4, 3, 4, 1, 1)
    images = jnp.zeros((2, 32, 32, 3))
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    _, aux = jax.eval_shape(lambda v: model.apply(v, images, return_aux=True), variables)
    assert [kept.shape for kept in aux.kept] == [(2, 2), (2, 0)]


def test_statistics_move_in_training():
    model = slim.create_model("evo_levit", **TINY, prune_ratio=HALF)
    variables = random_variables(model)
    images = jnp.asarray(np.random.default_rng(1).standard_normal((3, 64, 64, 3)), jnp.float32)
    apply = lambda v: model.apply(v, images, train=True, rngs={"dropout": jax.random.key(0)}, mutable=["batch_stats"])
    _, updates = jax.jit(apply)(variables)
    moved = lambda a, b: bool(jnp.abs(a - b).max() > 0)
    assert all(jax.tree.leaves(jax.tree.map(moved, variables["batch_stats"], updates["batch_stats"])))


def test_named_models():
    for size in ("128s", "128", "192", "256", "384"):
        evo, dense = slim.create_model(f"evo_levit_{size}"), slim.create_model(f"levit_{size}")
        assert evo.slim.plan.attention[:3] == (196, 196, 99 if size != "128s" else 196)
        assert 0.5 < slim.flops(evo).total / slim.flops(dense).total < 0.9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prune_ratio": ((0.5, 0.5, 0.5, 0.5), (0.5, 0.5))}, "the first layer must be dense"),
        ({"prune_ratio": ((1, 0.5, 0.5, 1), (0.5, 0.5))}, "the dense layers .* come first"),
        ({"prune_ratio": ((1, 0.5, 0.5, 0.5), (0.5, 1))}, "a stage that keeps everything"),
        ({"prune_ratio": ((1, 1.5, 0.5, 0.5), (0.5, 0.5))}, r"must lie in \(0, 1\]"),
        ({"prune_ratio": 0.5}, "be a pair"),
        ({"patch_size": 8}, "stride 16"),
        ({"fused": True}, "no fused form"),
        ({"method": "evit"}, "cannot run on this backbone"),
    ],
)
def test_impossible_models_are_refused(options, message):
    with pytest.raises(slim.SlimError, match=message):
        slim.create_model("evo_levit", **{**TINY, **options})
