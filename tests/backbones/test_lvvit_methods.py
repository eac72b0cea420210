"""Methods on LV-ViT, by what must hold: keeping all is the plain model, dropping is masking, merging equals is nothing.
And bfloat16 on the backbones with batch norms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import random_variables

import slimvit_jax as slim

SMALL = dict(img_size=64, embed_dim=16, depth=4, num_heads=2, num_classes=5)
IMAGES = np.random.default_rng(1).standard_normal((3, 64, 64, 3)).astype(np.float32)
WHERE = {"locations": (2, 3)}


@functools.cache
def dense():
    model = slim.create_model("lvvit", **SMALL)
    return model, random_variables(model)


def compiled(function):
    return jax.jit(function)


@functools.cache
def plain_logits():
    model, variables = dense()
    return compiled(model.apply)(variables, IMAGES)


def build(method, **options):
    """With the plain model's weights; the method's own are random."""
    model = slim.create_model("lvvit", method=method, **SMALL, **options)
    params = {**random_variables(model)["params"], **dense()[1]["params"]}
    return model, {**dense()[1], "params": params}


@pytest.mark.parametrize("method", ["life_regression", "evit", "topk", "tome"])
def test_keeping_all_is_the_plain_model(method):
    model, variables = build(method, **({"r": 0} if method == "tome" else {"keep_rate": 1.0, **WHERE}))
    assert model.slim.plan.mlp == (16,) * 4
    np.testing.assert_allclose(compiled(model.apply)(variables, IMAGES), plain_logits(), atol=2e-5)


class Masked(slim.Slimming, kw_only=True):
    """Computes every patch, and from a location on no token sees the patches whose given score is not above it.

    Attributes:
      locations: 1-based layers.
      inside: from between attention and MLP on, not from after the layer.
    """

    locations: tuple[int, ...] = (2, 3)
    inside: bool = True

    def hide(self, tokens, layer):
        if layer not in self.locations:
            return tokens
        seen = tokens.memory["given_scores"] > self.locations.index(layer) + 0.5
        return tokens.replace(log_weight=tokens.per_token(jnp.where(seen, 0.0, -1e30), 0.0))

    def after_attention(self, tokens, layer, probe, train):
        return self.hide(tokens, layer) if self.inside else tokens

    def after_block(self, tokens, layer, train):
        return tokens if self.inside else self.hide(tokens, layer)


@pytest.mark.parametrize("method", ["life_regression", "random", "evit", "topk"])
def test_dropping_patches_is_masking_them(method):
    """The class token cannot tell patches that are gone from patches that nobody looks at."""
    options = {"fuse_token": False} if method == "evit" else {}
    model, variables = build(method, keep_rate=0.5, **WHERE, **options)
    logits, aux = compiled(lambda v, x: model.apply(v, x, return_aux=True))(variables, IMAGES)
    assert [kept.shape[1] for kept in aux.kept] == [8, 4]
    survived = np.zeros((3, 16), np.float32)
    for kept in aux.kept:
        np.put_along_axis(survived, kept, np.take_along_axis(survived, kept, 1) + 1, 1)
    reference = slim.create_model("lvvit", Masked(inside=method in ("evit", "topk")), **SMALL)
    masked = compiled(lambda v, x, s: reference.apply(v, x, scores=s))(dense()[1], IMAGES, survived)
    np.testing.assert_allclose(logits, masked, atol=2e-5)
    assert np.abs(logits - plain_logits()).max() > 1e-3


def test_merging_equal_patches_changes_nothing():
    """ToMe weighs merged tokens by their number: of equal patches any number may become one."""
    options = SMALL | {"p_emb": "none", "patch_size": 16}
    plain = slim.create_model("lvvit", **options)
    model = slim.create_model("lvvit", method="tome", r=3, **options)
    variables = random_variables(plain)
    variables["params"]["pos_embed"] = variables["params"]["pos_embed"].at[:, 1:].set(0.0)
    images = np.broadcast_to(IMAGES[:, :1, :1], IMAGES.shape)
    assert model.slim.plan.mlp == (13, 10, 7, 4)
    merged, whole = compiled(model.apply)(variables, images), compiled(plain.apply)(variables, images)
    np.testing.assert_allclose(merged, whole, atol=2e-5)


PYRAMID = dict(img_size=64, embed_dim=(16, 24), depth=(2, 2), num_heads=(2, 3), key_dim=8, num_classes=5)


@pytest.mark.parametrize(("name", "options"), [("lvvit", SMALL), ("levit_distilled", PYRAMID), ("evo_levit", PYRAMID)])
def test_bfloat16_is_near_float32(name, options):
    """With smaller gains than random ones: LeViT's residuals grow without norms, and at large values a rounded score
    may choose another patch in Evo-LeViT.
    """
    models = [slim.create_model(name, dtype=dtype, **options) for dtype in ("float32", "bfloat16")]
    shrink = lambda path, leaf: 0.3 * leaf if path[-1].key == "scale" and "stages" in path[1].key else leaf
    variables = jax.tree_util.tree_map_with_path(shrink, random_variables(models[0]))
    exact, rough = (compiled(lambda v, x, m=m: m.apply(v, x, return_aux=True))(variables, IMAGES) for m in models)
    assert rough[0].dtype == jnp.float32 and rough[1].features.dtype == jnp.bfloat16
    spread, error = float(jnp.abs(exact[0]).max()), float(jnp.abs(exact[0] - rough[0]).max())
    assert 0 < error < 0.03 * spread, (error, spread)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("levit", "head.bn.bias is (40,), the model has (24,)"),
        ("evo_levit", "cls_token is (1, 1, 32), the model has (1, 1, 16)"),
    ],
)
def test_a_sibling_of_another_size_is_refused_with_both_shapes(name, words):
    model, other = (slim.create_model(name, **PYRAMID | more) for more in ({}, {"embed_dim": (32, 40)}))
    state = {name: np.zeros(leaf.torch_shape) for name, leaf in slim.convert.rules.expected(other).items()}
    with pytest.raises(slim.SlimError) as caught:
        slim.from_torch(model, state)
    message = str(caught.value)
    assert words in message and "embed_dim (32, 40)" in message and "\n" not in message
