"""Every method and backbone with a batch of any size, none included, and with 64-bit numbers switched on."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import slimvit_jax as slim
from slimvit_jax.methods import METHODS
from slimvit_jax.options import kinds_of

VIT = dict(img_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=2, num_classes=5)
PYRAMID = dict(img_size=32, embed_dim=(16, 32), depth=(2, 1), num_heads=2, key_dim=8, num_classes=5)
FAMILIES = {
    "vit": ("vit", VIT),
    "average": ("vit", VIT | {"class_token": False, "global_pool": "avg", "reg_tokens": 2, "init_values": 1e-3}),
    "deit_distilled": ("deit_distilled", VIT | {"qk_norm": True}),
    "lvvit": ("lvvit", VIT | {"img_size": 32, "patch_size": 16}),
    "levit": ("levit", PYRAMID),
    "levit_distilled": ("levit_distilled", PYRAMID),
    "evo_levit": ("evo_levit", PYRAMID),
}


def models():
    for family, (name, _) in FAMILIES.items():
        for method in (None, *METHODS):
            needs = METHODS[method].needs_class_token if method else False
            if method is None or not (
                name.endswith("levit") or name == "levit_distilled" or needs and family == "average"
            ):
                yield pytest.param(family, method, id=f"{family}-{method or 'dense'}")


@functools.cache
def built(family, method):
    name, size = FAMILIES[family]
    fit = {"keep_rate": 0.5, "locations": (2,), "layers": (2,), "r": 1, "k_neighbors": 2, "ratio": 0.6}
    options = {key: value for key, value in fit.items() if method and key in kinds_of(METHODS[method])}
    if "r" in options:
        options.pop("keep_rate", None)
    return slim.create_model(name, method=method, **size, **options)


@functools.cache
def shapes(family, method):
    model = built(family, method)
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *model.img_size, model.in_chans)))


@pytest.mark.parametrize(("family", "method"), models())
def test_batches_of_any_size(family, method):
    """Exported with a symbolic batch, as `slim.export` does, and traced for no image at all."""
    model, variables = built(family, method), shapes(family, method)
    (batch,) = jax.export.symbolic_shape("batch")
    image = (*model.img_size, model.in_chans)
    exported = jax.export.export(jax.jit(model.apply))(variables, jax.ShapeDtypeStruct((batch, *image), jnp.float32))
    assert exported.out_avals[0].shape == (batch, model.num_classes)
    none = jax.eval_shape(model.apply, variables, jax.ShapeDtypeStruct((0, *image), jnp.float32))
    assert none.shape == (0, model.num_classes)


@pytest.mark.parametrize(("family", "method"), [("vit", method) for method in METHODS] + [(f, None) for f in FAMILIES])
def test_parameters_stay_float32(family, method):
    model = built(family, method)
    with jax.enable_x64(True):
        images = np.zeros((2, *model.img_size, model.in_chans))
        variables = jax.eval_shape(model.init, jax.random.key(0), images)
        assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
        for train in (False, True):
            apply = functools.partial(
                model.apply, train=train, return_aux=True, rngs={"dropout": jax.random.key(0)}, mutable=["batch_stats"]
            )
            outputs, _ = jax.eval_shape(apply, variables, images)
            assert not {leaf.dtype for leaf in jax.tree.leaves(outputs)} & {jnp.dtype("float64"), jnp.dtype("int64")}


@pytest.mark.parametrize("family", ["vit"])
def test_no_images_give_no_logits(family):
    model = built(family, None)
    variables = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), shapes(family, None))
    assert model.apply(variables, jnp.zeros((0, *model.img_size, 3))).shape == (0, 5)
