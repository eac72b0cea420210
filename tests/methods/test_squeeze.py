"""squeeze: parity with TPS, the algebra by hand, and what holds for every method that drops."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import Golden, close, random_variables

import slimvit_jax as slim
from slimvit_jax.errors import SlimError
from slimvit_jax.methods import METHODS
from slimvit_jax.ops import squeeze

TINY = dict(img_size=(20, 16), patch_size=4, embed_dim=32, depth=4, num_heads=2, num_classes=5)  # 20 patches
IMAGES = np.random.default_rng(3).normal(size=(3, 20, 16, 3)).astype(np.float32)
#: From the fields: a new method that drops is covered as it comes.
DROPPING = [name for name in slim.list_methods() if "squeeze" in METHODS[name].__dataclass_fields__]


@functools.cache
def built(method, **options):
    fields = {field.name for field in dataclasses.fields(METHODS[method])}
    usual = {k: v for k, v in dict(keep_rate=0.5, locations=(2, 3)).items() if k in fields}
    model = slim.create_model("vit", method=method, **{**TINY, **usual, **options})
    return model, random_variables(model)


def run(model, variables, images=IMAGES, **options):
    apply = jax.jit(lambda v, x: model.apply(v, x, return_aux=True, **options))
    return apply(variables, images)


@pytest.mark.parametrize(
    ("case", "method", "options"),
    [("tps_dtps", "dynamicvit", {"token_ratio": (0.7, 0.49, 0.343)}), ("tps_etps", "evit", {"fuse_token": False})],
)
def test_goldens(case, method, options):
    golden = Golden.load(case)
    model, variables = golden.model(method, squeeze=True, **options)
    apply = jax.jit(lambda v, x: model.apply(v, x, return_aux=True))
    logits, aux = apply(variables, golden.images)
    close(logits, golden.out("logits"))
    held = np.broadcast_to(np.arange(196), (2, 196))
    for kept, block in zip(aux.kept, (3, 6, 9), strict=True):  # as sets: near neighbours may change places
        held = np.take_along_axis(held, golden.out(f"keep_{block}"), axis=1)
        np.testing.assert_array_equal(np.sort(kept, axis=1), np.sort(held, axis=1))
    np.testing.assert_array_equal(np.add(model.slim.plan.mlp, 1), golden.out("tokens_after_block"))


HOSTS = jnp.asarray([[[2.0, 0.0], [0.0, 1.0], [0.0, 2.0]]])
GUESTS = jnp.asarray([[[4.0, 0.0], [3.0, 3.0], [1.0, -1.0]]])


def test_exponential_by_hand():
    host, cosine = squeeze.nearest_host(HOSTS, GUESTS)
    np.testing.assert_array_equal(host, [[0, 0, 0]])  # the second is as near to all three: the first gets it
    half = 1 / np.sqrt(2)
    np.testing.assert_allclose(cosine, [[1, half, half]], rtol=1e-6)
    weights = np.exp([1, 1, half, half])
    expected = weights @ [[2, 0], [4, 0], [3, 3], [1, -1]] / weights.sum()
    np.testing.assert_allclose(squeeze.squeeze_exponential(HOSTS, GUESTS)[0], [expected, [0, 1], [0, 2]], rtol=1e-6)
    cold = squeeze.squeeze_exponential(HOSTS, GUESTS, 1e-3)  # the most similar guest outweighs all, without overflow
    np.testing.assert_allclose(cold[0, 0], [4, 0], rtol=1e-6)


def test_mean_by_hand():
    patches, size = squeeze.squeeze_mean(HOSTS, GUESTS, jnp.asarray([[2.0, 1, 1]]), jnp.asarray([[3.0, 1, 0]]))
    np.testing.assert_allclose(patches[0], [[19 / 6, 0.5], [0, 1], [0, 2]], rtol=1e-6)  # size 0: went nowhere
    np.testing.assert_array_equal(size, [[6, 1, 1]])


@pytest.mark.parametrize("mode", [True, "mean"])
def test_masked_rows_are_what_the_separate_rows_are(mode):
    rng = np.random.default_rng(0)
    x, size = jnp.asarray(rng.normal(size=(2, 9, 5))), jnp.asarray(rng.integers(1, 5, (2, 9)), jnp.float32)
    gone = jnp.asarray([[0, 1, 0, 0, 1, 1, 0, 0, 0]] * 2, jnp.float32)
    held, left = np.flatnonzero(gone[0] == 0), np.flatnonzero(gone[0])
    if mode is True:
        masked = squeeze.squeeze_exponential(x, x, 0.5, 1 - gone, gone)
        apart = squeeze.squeeze_exponential(x[:, held], x[:, left], 0.5)
    else:
        masked, grown = squeeze.squeeze_mean(x, x, size, size * gone, 1 - gone)
        apart, expected = squeeze.squeeze_mean(x[:, held], x[:, left], size[:, held], size[:, left])
        np.testing.assert_allclose(grown[:, held], expected)
        np.testing.assert_allclose(expected.sum(axis=1), size.sum(axis=1))  # every patch is counted once
        np.testing.assert_allclose(  # and so is what it said
            jnp.einsum("bn,bnd->bd", expected, apart), jnp.einsum("bn,bnd->bd", size, x), rtol=1e-5, atol=1e-5
        )
    np.testing.assert_allclose(masked[:, held], apart, rtol=1e-5, atol=1e-6)


def test_which_methods_have_it():
    assert {"life_regression", "random", "topk", "evit", "dynamicvit", "ats", "ia_red2"} <= set(DROPPING)
    for method in DROPPING:
        assert not METHODS[method].merges
    with pytest.raises(SlimError, match="squeeze is for methods that only drop .*; those of method 'tome' are merged"):
        slim.create_model("vit", method="tome", squeeze=True, **TINY)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"squeeze": "max"}, "squeeze='max'"),
        ({"squeeze": 1}, "squeeze=1"),
        ({"squeeze": None}, "squeeze=None"),
        ({"squeeze": True, "squeeze_temperature": 0.0}, "squeeze_temperature=0.0"),
        ({"squeeze": "mean", "squeeze_temperature": 2.0}, "squeeze_temperature=2.0 is of squeeze=True"),
        ({"squeeze": True, "squeeze_temperature": float("nan")}, "squeeze_temperature=nan"),
        ({"squeeze": True, "squeeze_temperature": "1"}, "squeeze_temperature='1'"),
    ],
)
@pytest.mark.parametrize("method", DROPPING)
def test_bad_options(method, options, said):
    with pytest.raises(SlimError, match=said):
        slim.create_model("vit", method=method, **TINY, **options)


def test_a_fused_token_and_squeeze_exclude_each_other():
    with pytest.raises(SlimError, match="fuse_token=True and squeeze='mean'"):
        slim.create_model("vit", method="evit", fuse_token=True, squeeze="mean", **TINY)
    model, _ = built("evit", squeeze="mean")
    assert model.slim.plan.mlp[-1] == 5 and built("evit")[0].slim.plan.mlp[-1] == 7  # of 20: 10 (+ 1), then half of it


@pytest.mark.parametrize("method", DROPPING)
def test_every_method_that_drops(method):
    model, variables = built(method, squeeze="mean")
    both = np.concatenate([IMAGES, IMAGES[::-1]])
    logits, aux = run(model, variables, both)
    plain, _ = built(method, **({"fuse_token": False} if method == "evit" else {}))
    without, aux_without = run(plain, variables, both)
    assert np.isfinite(logits).all() and np.abs(logits - without).max() > 1e-3
    np.testing.assert_array_equal(aux.kept[0], aux_without.kept[0])  # squeezing changes nothing about who stays first
    np.testing.assert_allclose(logits[3:], logits[2::-1], atol=1e-5)  # neighbours and place in the batch do not matter
    assert slim.flops(model).total > slim.flops(plain).total


@pytest.mark.parametrize("method", DROPPING)
@pytest.mark.parametrize("mode", [True, "mean"])
def test_training_takes_it(method, mode):
    model, variables = built(method, squeeze=mode)

    def loss(params):
        rngs = {"dropout": jax.random.key(0)}
        return jnp.square(model.apply({**variables, "params": params}, IMAGES, train=True, rngs=rngs)).sum()

    gradients = jax.eval_shape(jax.grad(loss), variables["params"])
    assert jax.tree.map(jnp.shape, gradients) == jax.tree.map(jnp.shape, variables["params"])


@pytest.mark.parametrize("mode", [True, "mean"])
@pytest.mark.parametrize("pool", ["token", "avg"])
def test_masked_training_computes_what_inference_computes(mode, pool):
    """Life regression with hard masks: the masked, squeezed tokens are those that inference holds."""
    options = dict(squeeze=mode, hard=True, predictor_scale=1.0, global_pool=pool)
    model, variables = built("life_regression", **options)
    expected, _ = run(model, variables)
    apply = lambda v, x: model.apply(v, x, train=True, rngs={"dropout": jax.random.key(0)})
    masked = jax.jit(apply)(variables, IMAGES)
    np.testing.assert_allclose(masked, expected, atol=2e-4)


@pytest.mark.parametrize("method", ["dynamicvit", "topk"])
def test_gradients_are_finite(method):
    model, variables = built(method, squeeze="mean")

    def loss(params):
        rngs = {"dropout": jax.random.key(1)}
        return jnp.square(model.apply({**variables, "params": params}, IMAGES, train=True, rngs=rngs)).sum()

    gradients = jax.jit(jax.grad(loss))(variables["params"])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_flops_in_closed_form():
    dim, plain, squeezed = 32, built("random")[0], built("random", squeeze=True)[0]
    drops = 2 * 10 * 10 * dim + 2 * 5 * 5 * dim  # 20 -> 10 after layer 2, 10 -> 5 after layer 3
    assert slim.flops(squeezed).total - slim.flops(plain).total == drops
