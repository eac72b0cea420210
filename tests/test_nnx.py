"""Models under Flax NNX and JAX's transformations: the same numbers, no special care."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden import random_variables

import slimvit_jax as slim

VIT = dict(img_size=16, patch_size=4, embed_dim=16, depth=3, num_heads=2, num_classes=5)
PYRAMID = dict(img_size=32, embed_dim=(16, 24), depth=(1, 1), num_heads=(2, 3), key_dim=8, num_classes=5)
CASES = {
    "vit": ("vit", VIT),
    "deit_distilled": ("deit_distilled", VIT),
    "lvvit": ("lvvit", VIT | {"p_emb": "none"}),
    "siglip": ("vit", VIT | {"class_token": False, "global_pool": "map"}),
    "eva": ("eva", VIT | {"use_rot_pos_emb": True}),
    "levit": ("levit", PYRAMID),
    "evo_levit": ("evo_levit", PYRAMID),
    "life_regression": ("vit", VIT | {"method": "life_regression", "locations": (1, 2)}),
    "evit": ("vit", VIT | {"method": "evit", "locations": (2,)}),
    "tome": ("vit", VIT | {"method": "tome", "r": 3}),
    "atc": ("vit", VIT | {"method": "atc", "locations": (1,)}),
}


@functools.cache
def built(case):
    name, options = CASES[case]
    model = slim.create_model(name, **options)
    return model, np.random.default_rng(0).normal(size=(2, *model.img_size, 3)).astype(np.float32)


@pytest.mark.parametrize("case", CASES)
def test_to_nnx(case):
    model, images = built(case)

    def made():
        bridged = nnx.bridge.ToNNX(model, rngs=nnx.Rngs(0)).lazy_init(images)
        return bridged, bridged(images)

    bridged, logits = nnx.eval_shape(made)  # shapes alone: cheap
    assert logits.shape == (2, 5)
    names = {"/".join(map(str, path)) for path, _ in nnx.state(bridged).flat_state()}
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    expected = {"/".join(key.key for key in path[1:]) for path, _ in jax.tree_util.tree_leaves_with_path(shapes)}
    assert expected <= names


def test_the_same_weights_give_the_same_logits_and_gradients_under_nnx():
    model, images = built("evit")
    variables = random_variables(model)
    bridged = nnx.bridge.ToNNX(model, rngs=nnx.Rngs(0)).lazy_init(images)
    nnx.update(bridged, nnx.State(jax.tree.map(nnx.Param, variables["params"])))
    logits, aux = bridged(images, return_aux=True)
    np.testing.assert_allclose(logits, model.apply(variables, images), atol=1e-5)
    assert slim.grid_features(model, aux).shape == (2, 4, 4, 16)
    gradients = nnx.grad(lambda m: m(images).sum())(bridged)
    reference = jax.grad(lambda p: model.apply({"params": p}, images).sum())(variables["params"])
    np.testing.assert_allclose(gradients["head"]["kernel"][...], reference["head"]["kernel"], atol=1e-4)


@pytest.mark.parametrize("case", ["life_regression", "atc"])
def test_jax_transformations(case):
    model, images = built(case)
    variables = random_variables(model)
    apply = lambda x: model.apply(variables, x)
    expected = jax.jit(apply)(images)
    one_by_one = jax.jit(jax.vmap(lambda image: apply(image[None])[0]))(images)
    np.testing.assert_allclose(one_by_one, expected, atol=1e-5)
    loss = lambda f: jax.jit(jax.grad(lambda x: jnp.square(f(x)).sum()))(images)
    np.testing.assert_allclose(loss(jax.checkpoint(apply)), loss(apply), atol=1e-4)
    assert jax.eval_shape(apply, images).shape == expected.shape
    remat = model.clone(remat=True)
    np.testing.assert_allclose(jax.jit(remat.apply)(variables, images), expected, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_tabulate(case):
    model, images = built(case)
    table = nn.tabulate(model, jax.random.key(0), compute_flops=False)(images)
    assert "Total Parameters" in table
