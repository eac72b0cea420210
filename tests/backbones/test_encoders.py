"""Encoders without class token, and rotary positions that follow their tokens: every kind of method on them."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import close, random_variables
from test_matrix import SPECIAL
from timm_reference import reference, torch

import slimvit_jax as slim
from slimvit_jax.convert import from_torch
from slimvit_jax.methods import METHODS
from slimvit_jax.ops.rotary import Rotary
from slimvit_jax.tokens import Tokens

TINY = dict(img_size=(16, 20), patch_size=4, embed_dim=16, depth=3, num_heads=2, num_classes=5)
ROTARY = dict(use_rot_pos_emb=True, use_abs_pos_emb=False)
ENCODERS = {
    "siglip": ("vit", dict(class_token=False, global_pool="map")),
    "clip": ("vit", dict(pre_norm=True, eps=1e-5, act_layer="quick_gelu")),
    "dinov3": ("eva", dict(ROTARY, rope_type="dinov3", rope_temperature=100.0, rope_rotate_half=True, reg_tokens=2)),
    "eva02": ("eva", dict(use_rot_pos_emb=True, swiglu_mlp=True, scale_mlp=True, qkv_fused=False, init_values=0.1)),
}
KINDS = {"drops": ("topk", "life_regression", "ats"), "merges": ("tome", "sit", "dpcknn")}
IMAGES = np.random.default_rng(0).normal(size=(2, 16, 20, 3)).astype(np.float32)


def build(encoder, method, keep_rate=0.5, **more):
    family, options = ENCODERS[encoder]
    if method is not None:
        fields = {field.name for field in dataclasses.fields(METHODS[method])}
        options = options | {k: v for k, v in dict(keep_rate=keep_rate, locations=(2, 3)).items() if k in fields}
        options |= SPECIAL.get(method, {}) if keep_rate != 1.0 else {}
    return slim.create_model(family, method=method, **TINY, **options | more)


def run(model, variables, **keywords):
    return jax.jit(lambda v, x: model.apply(v, x, return_aux=True, **keywords))(variables, IMAGES)


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("method", [method for method in slim.list_methods() if not METHODS[method].needs_class_token])
def test_every_method_on_every_encoder(encoder, method):
    """Traced, in training and at inference."""
    model = build(encoder, method)
    shapes = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
    for train in (False, True):
        step = lambda v, train=train: model.apply(
            v, IMAGES, train, return_aux=True, rngs={"dropout": jax.random.key(0)}
        )
        logits, aux = jax.eval_shape(step, shapes)
        plan = model.slim.train_plan if train else model.slim.plan
        assert logits.shape == (2, 5) and aux.token_counts == plan.token_counts
    assert slim.flops(model).total > 0


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("method", [method for kind in KINDS.values() for method in kind])
def test_images_do_not_depend_on_each_other(encoder, method):
    model = build(encoder, method)
    variables = random_variables(model)
    apply = jax.jit(lambda v, x: model.apply(v, x))
    logits, turned = apply(variables, IMAGES), apply(variables, IMAGES[::-1])
    assert np.isfinite(logits).all() and model.slim.plan.token_counts[-1] < 20
    np.testing.assert_allclose(turned[::-1], logits, atol=2e-5)


@pytest.mark.parametrize("encoder", ["siglip", "dinov3"])
@pytest.mark.parametrize("method", ["topk", "tome"])
def test_keeping_all_is_the_dense_encoder(encoder, method):
    """Where nothing leaves, tokens may be in another order, and turn as they did."""
    dense = build(encoder, None)
    variables = random_variables(dense)
    expected, _ = run(dense, variables)
    logits, _ = run(build(encoder, method, keep_rate=1.0), variables)
    np.testing.assert_allclose(logits, expected, atol=2e-5)


@pytest.mark.parametrize("encoder", ["dinov3", "eva02"])
def test_positions_follow_the_tokens_that_stay(encoder):
    """timm's layers, given the tokens we kept with their own angles."""
    name = {"dinov3": "vit_small_patch16_dinov3", "eva02": "eva02_base_patch14_448"}[encoder]
    patch = 16 if encoder == "dinov3" else 14
    options = dict(img_size=(3 * patch, 4 * patch), depth=2, num_classes=5, embed_dim=16, num_heads=2)
    theirs = reference(name, **options)
    model = slim.create_model(name, method="random", keep_rate=0.5, locations=(1,), **options)
    images = np.random.default_rng(0).normal(size=(1, *model.img_size, 3)).astype(np.float32)
    scores = np.random.default_rng(1).random((1, 12)).astype(np.float32)
    apply = jax.jit(lambda v: model.apply(v, images, return_aux=True, scores=scores))
    logits, aux = apply(from_torch(model, theirs.state_dict()))
    kept = torch.from_numpy(np.asarray(aux.kept[0][0]))
    front = model.geometry.prefix_tokens
    with torch.no_grad():
        x, angles = theirs._pos_embed(theirs.patch_embed(torch.from_numpy(images.transpose(0, 3, 1, 2))))[:2]
        x = theirs.blocks[0](theirs.norm_pre(x), rope=angles)
        x = torch.cat([x[:, :front], x[:, front:][:, kept]], dim=1)
        want = theirs.forward_head(theirs.norm(theirs.blocks[1](x, rope=angles[kept])))
    close(logits, want.numpy())


def test_merged_tokens_are_where_they_are_on_average():
    places = Rotary((2, 2), 4).coordinates()
    np.testing.assert_array_equal(places, [[0, 0], [0, 1], [1, 0], [1, 1]])
    tokens = Tokens(x=jnp.zeros((1, 5, 4)), origin=jnp.arange(4)[None], places=jnp.asarray(places))
    moved = tokens.take(jnp.asarray([[3, 1]]))
    np.testing.assert_array_equal(moved.positions[0], [[1, 1], [0, 1]])
    mean = lambda places: places.mean(axis=1, keepdims=True)
    merged = moved.with_patches(jnp.zeros((1, 1, 4)), position=moved.placed(mean))
    np.testing.assert_array_equal(merged.positions[0], [[0.5, 1]])
    np.testing.assert_array_equal(merged.first(1).positions[0], [[0.5, 1]])
    np.testing.assert_array_equal(moved.with_patches(jnp.zeros((1, 1, 4))).positions[0], [[0.5, 0.5]])  # the middle
    assert tokens.replace(places=None).placed(mean) is None


@pytest.mark.parametrize("method", ["tome", "sit", "dpcknn", "patchmerger", "sinkhorn", "evit", "mctf", "dtem"])
def test_methods_say_where_their_tokens_are(method):
    """Moved along with the grid, all that is made of patches moves along too: rotary attention is relative.

    (Without prefix tokens, which have a place of their own.)
    """
    model = build("eva02", method, use_abs_pos_emb=False, class_token=False)
    variables = random_variables(model)
    apply = lambda model: model.apply(variables, IMAGES)
    expected = jax.jit(lambda: apply(model))()
    plain = Rotary.coordinates
    try:
        Rotary.coordinates = lambda self: plain(self) + np.float32([3.0, -2.0])
        shifted = jax.jit(lambda: apply(model))()
    finally:
        Rotary.coordinates = plain
    np.testing.assert_allclose(shifted, expected, atol=2e-4)


def test_what_a_patch_receives():
    model = build("siglip", "topk")
    variables = random_variables(model)
    _, aux = run(model, variables)
    assert aux.scores.shape == (2, 20)
    np.testing.assert_allclose(aux.scores.sum(axis=1), 1.0, atol=1e-5)  # all that is given is received
    for row, kept in zip(np.asarray(aux.scores), np.asarray(aux.kept[0]), strict=True):
        np.testing.assert_array_equal(kept, np.argsort(-row, kind="stable")[:10])


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("vit", dict(method="evo", class_token=False, global_pool="map"), "no class token"),
        ("levit", dict(method="topk", embed_dim=(16, 24), num_heads=(2, 2), depth=(1, 1), key_dim=8), "cannot run"),
        ("eva", dict(rope_type="mixed"), "mixed"),
        ("eva", dict(ROTARY, embed_dim=12, num_heads=2), "divisible by 4"),
        ("eva", dict(scale_mlp=True), "swiglu_mlp=True"),
        ("eva", dict(reg_tokens=1, num_reg_tokens=1), "same option"),
        ("vit", dict(global_pool="map", act_layer="relu"), "relu"),
        ("vit", dict(class_token=False), "global_pool='avg' or 'map'"),
    ],
)
def test_combinations_without_meaning_are_refused(name, options, words):
    with pytest.raises(slim.SlimError, match=words):
        slim.create_model(name, **({} if name == "levit" else TINY) | options)
