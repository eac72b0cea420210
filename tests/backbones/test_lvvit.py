"""LV-ViT and SiT on it: the numbers of the release, batch statistics, every other method on this backbone."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import Golden, close, random_variables

import slimvit_jax as slim
from slimvit_jax.convert import rules
from slimvit_jax.layers_conv import BatchNorm

TINY = dict(img_size=32, embed_dim=16, depth=4, num_heads=2, num_classes=5)
KEY = {"dropout": jax.random.key(0)}


def build(**options):
    model = slim.create_model("lvvit", **{**TINY, **options})
    images = jnp.asarray(np.random.default_rng(1).standard_normal((4, *model.img_size, 3)), jnp.float32)
    return model, random_variables(model), images


def recorded(model):
    """Compiled inference with the tokens of every layer."""
    return jax.jit(lambda v, x: model.apply(v, x, return_aux=True, record_tokens=True))


def test_golden_lvvit_and_the_way_back():
    golden = Golden.load("lvvit")
    model = slim.create_model("lvvit", **golden.meta["constructor_kwargs"])
    variables = slim.from_torch(model, golden.state())
    logits, aux = recorded(model)(variables, golden.images)
    close(logits, golden.out("logits"))
    for layer, tokens in enumerate(aux.taps["tokens"]):
        close(tokens, golden.out(f"layer_tokens_{layer}"))
    state, back = golden.state(), slim.to_torch(model, variables)
    assert set(back) == set(state)
    for name, value in state.items():
        np.testing.assert_array_equal(back[name], value, err_msg=name)


def test_golden_sit_with_its_losses():
    golden = Golden.load("sit")
    model = slim.create_model("lvvit", **golden.meta["constructor_kwargs"])  # the release's keywords alone
    dense = slim.create_model("lvvit", **golden.meta["teacher_kwargs"])
    assert (model.slim.method, dense.slim.method) == ("sit", "dense")
    variables, theirs = slim.from_torch(model, golden.state()), slim.from_torch(dense, golden.state("teacher_sd/"))
    logits, aux = recorded(model)(variables, golden.images)
    close(logits, golden.out("logits"))
    for layer, tokens in enumerate(aux.taps["tokens"]):
        close(tokens, golden.out(f"eval_layer_tokens_{layer}"))
    # batch_stats is not mutable: batch norms stay in evaluation mode, as in the golden values
    train = jax.jit(lambda v, x: model.apply(v, x, train=True, return_aux=True, rngs=KEY))
    logits, aux = train(variables, golden.images)
    close(logits, golden.out("train_logits"))
    for layer, tokens in enumerate(aux.taps["recovered"]):
        close(tokens, golden.out(f"train_layer_tokens_{layer}"))
    teacher = recorded(dense)(theirs, golden.images)
    close(teacher[0], golden.out("teacher_logits"))
    losses = model.losses(logits, aux, slim.Targets(jnp.asarray(golden.arrays["in/targets"]), teacher=teacher))
    weighted = {name: value.mean() * model.loss_weights()[name] for name, value in losses.items()}
    close(weighted["classification"], golden.out("loss_cls"))
    close(weighted["token_distillation"], golden.out("loss_token"))
    close(weighted["distillation"], golden.out("loss_logits"))
    close(sum(weighted.values()), golden.out("loss_total"))


@pytest.mark.parametrize(
    ("name", "gflops", "millions"),
    [
        ("lvvit_t", 3.5, 15.7),
        ("lvvit_s", 5.5, 25.4),
        ("lvvit_m", 11.9, 55.2),
        ("lvvit_l", 56.1, 147),
        ("sit_t", 1.0, 15.9),
        ("sit_xs", 1.5, 25.6),
        ("sit_s", 4.0, 25.6),
        ("sit_m", 8.1, 55.6),
        ("sit_l", 34.4, 148.2),
    ],
)
def test_published_sizes(name, gflops, millions):
    model = slim.create_model(name)
    assert slim.flops(model).total / 1e9 == pytest.approx(gflops, rel=0.015)
    leaves = rules.expected(model).items()
    inference = [leaf for key, leaf in leaves if not key.startswith("rtsm") and "running" not in key]
    assert sum(np.prod(leaf.shape) for leaf in inference) / 1e6 == pytest.approx(millions, rel=0.015)


def test_a_name_that_implies_a_method_can_have_another():
    small = dict(TINY, img_size=(32, 48), depth=16)
    assert slim.create_model("sit_s", **small).slim.places == (9, 12, 14)
    assert slim.create_model("sit_s", **small, keep_rate=0.7, locations=(3, 5)).slim.places == (3, 5)
    assert slim.create_model("sit_s", **small, stage_blocks=(8, 8)).slim.places == (8,)
    assert slim.create_model("sit_s", method="evit", **small).slim.method == "evit"
    assert slim.create_model("lvvit_s", **small).slim.method == "dense"


METHODS = ["life_regression", "evit", "topk", "random", "tome", "dynamicvit", "evo", "avit"]


@pytest.mark.parametrize("method", METHODS)
def test_every_dropper_traces_on_it(method):
    """Shapes alone, which costs no compilation; what the methods compute is tested on ViT, by the same code."""
    where = {"r": 2} if method == "tome" else {} if method == "avit" else {"keep_rate": 0.5, "locations": (2, 3)}
    small = dict(TINY, img_size=64)
    model, dense = slim.create_model("lvvit", method=method, **small, **where), slim.create_model("lvvit", **small)
    images = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    plain = jax.eval_shape(dense.init, jax.random.key(0), images)
    assert {name: leaf for name, leaf in variables["params"].items() if name != "slim"} == plain["params"]
    for train in (False, True):
        apply = lambda v, x, train=train: model.apply(v, x, train=train, return_aux=True, rngs=KEY)
        logits, aux = jax.eval_shape(apply, variables, images)
        assert logits.shape == (2, 5)
        if not train and method != "avit":
            assert aux.token_counts[-1] < aux.token_counts[0] == 16
            assert slim.flops(model).total < slim.flops(dense).total


def test_life_regression_that_keeps_everything_is_the_dense_model():
    model, variables, images = build(method="life_regression", keep_rate=1.0, locations=(2, 3))
    dense = slim.create_model("lvvit", **TINY)
    backbone = {**variables, "params": {k: v for k, v in variables["params"].items() if k != "slim"}}
    ours, reference = jax.jit(model.apply)(variables, images), jax.jit(dense.apply)(backbone, images)
    np.testing.assert_allclose(ours, reference, atol=1e-6)


def test_batch_norm_moves_its_statistics_only_where_they_are_mutable():
    x = 3 + 2 * jax.random.normal(jax.random.key(0), (8, 5, 5, 6))
    norm = BatchNorm()
    variables = norm.init(jax.random.key(0), x, True)
    np.testing.assert_array_equal(variables["batch_stats"]["var"], jnp.ones(6))  # init sees no data
    y, updates = norm.apply(variables, x, True, mutable=["batch_stats"])
    np.testing.assert_allclose(y.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(y.var((0, 1, 2)), 1, atol=1e-4)
    flat = np.asarray(x).reshape(-1, 6)
    np.testing.assert_allclose(updates["batch_stats"]["mean"], 0.1 * flat.mean(0), rtol=1e-5)
    np.testing.assert_allclose(updates["batch_stats"]["var"], 0.9 + 0.1 * flat.var(0, ddof=1), rtol=1e-5)
    np.testing.assert_allclose(norm.apply(variables, x, True), x / np.sqrt(1 + 1e-5), rtol=1e-5)


def test_statistics_and_token_labels_in_training():
    model, variables, images = build()
    step = jax.jit(lambda v: model.apply(v, images, train=True, return_aux=True, rngs=KEY, mutable=["batch_stats"]))
    (logits, aux), updates = step(variables)
    assert aux.taps["token_logits"].shape == (4, 4, 5) and logits.shape == (4, 5)
    _, quiet = jax.eval_shape(lambda v: model.apply(v, images, return_aux=True), variables)
    assert "token_logits" not in quiet.taps
    moved = lambda a, b: bool(jnp.abs(a - b).max() > 0)
    assert all(jax.tree.leaves(jax.tree.map(moved, variables["batch_stats"], updates["batch_stats"])))


SHARDED = """
import jax, jax.numpy as jnp, numpy as np
from slimvit_jax.layers_conv import BatchNorm
x = 3 + jax.random.normal(jax.random.key(0), (4, 3, 3, 6)) * jnp.arange(1, 5)[:, None, None, None]
rows = jax.sharding.NamedSharding(jax.make_mesh((2,), ("data",)), jax.sharding.PartitionSpec("data"))
norm = BatchNorm()
variables = norm.init(jax.random.key(0), x, False)
step = jax.jit(lambda x: norm.apply(variables, x, True, mutable=["batch_stats"]))
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), step(x), step(jax.device_put(x, rows)))
"""


def test_statistics_are_those_of_the_whole_batch_when_it_is_sharded():
    """In a process of its own: the number of devices is fixed when JAX starts."""
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    done = subprocess.run([sys.executable, "-c", SHARDED], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_distilled_model_has_the_parameters_of_the_release():
    options = dict(TINY, conv_distillation=True, distillation_type="frd", stage_blocks=[2, 2])
    model, images = slim.create_model("lvvit", **options), jax.ShapeDtypeStruct((4, 32, 32, 3), jnp.float32)
    assert {"dist_token", "dist_pos_embed", "head_dist.weight", "tsm.0.scale", "rtsm.1.norm1.weight"} <= set(
        rules.expected(model)
    )
    assert rules.expected(model)["pos_embed"].shape == (1, 5, 16)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    _, aux = jax.eval_shape(lambda v, x: model.apply(v, x, return_aux=True), variables, images)
    assert aux.taps["dist_logits"].shape == (4, 5) and aux.features.shape == (4, 2 + 2, 16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"p_emb": "5c"}, "unknown p_emb '5c'"),
        ({"img_size": 40}, "image height 40 is not divisible by the patch size 16"),
        ({"patch_size": 8}, "stride 16"),
        ({"embed_dim": 18}, "embed_dim=18 must be divisible by 8"),
        ({"skip_lam": 0}, "skip_lam=0 must be a positive number"),
        ({"stage_blocks": (2, 1)}, r"stage_blocks=\(2, 1\) has 3 layers in all; the model has 4"),
        ({"distillation_type": "soft"}, "unknown distillation_type 'soft'"),
        ({"head_dim": 8}, "unknown option .*'head_dim'"),
    ],
)
def test_impossible_models_are_refused(options, message):
    with pytest.raises(slim.SlimError, match=message):
        slim.create_model("lvvit", **{**TINY, **options})


def test_weights_of_a_sibling_size_are_refused_with_both_shapes():
    expected = rules.expected(slim.create_model("lvvit", **TINY))
    state = {name: np.zeros(leaf.torch_shape) for name, leaf in expected.items()}
    other = slim.create_model("lvvit", **TINY | {"embed_dim": 32})
    with pytest.raises(slim.SlimError, match="is .16,., the model has .32,.|LV-ViT with embed_dim 16"):
        slim.from_torch(other, state)
