"""ToMe: parity with the official code, schedules, other backbones."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import Golden, close, run, small

import slimvit_jax as slim
from slimvit_jax.methods.tome import per_layer

TINY = dict(img_size=24, patch_size=4, embed_dim=32, depth=4, num_heads=2, num_classes=5)  # 36 patches
built = functools.partial(small, **TINY)
IMAGES = jax.random.normal(jax.random.key(7), (2, 24, 24, 3))


@pytest.mark.parametrize(("case", "r"), [("tome_r8", 8), ("tome_r13", 13), ("tome_distilled_r8", 8)])
def test_tome_goldens(case, r):
    golden = Golden.load(case)
    family = "deit_distilled" if "distilled" in case else "vit"
    model, variables = golden.model("tome", family, r=r, track_source=True)
    logits, aux = run(model, variables, golden.images)
    close(logits, golden.out("logits"))
    size = golden.out("size")
    np.testing.assert_array_equal(aux.taps["size"], size.reshape(size.shape[:2]))
    np.testing.assert_array_equal(aux.taps["source"], golden.out("source"))
    assert aux.kept is None
    prefix = model.geometry.prefix_tokens
    np.testing.assert_array_equal(np.add(model.slim.plan.mlp, prefix), golden.out("tokens_after_block"))


def _plan(method, **options):
    return slim.create_model("deit_small_patch16_224", method=method, **options).slim.plan


def test_tome_schedules():
    assert per_layer(8, 3) == (8, 8, 8)
    assert per_layer((8, -1.0), 3) == (16, 8, 0)
    assert per_layer((8, 1.0), 3) == (0, 8, 16)
    assert per_layer((4, 2, 1, 1), 6) == (4, 2, 1, 1, 0, 0)
    assert _plan("tome", r=[8, 8]).mlp[:3] == (188, 180, 180)  # a list is per layer
    assert _plan("tome", r=(8, 1)).mlp[0] == 196  # a tuple of two is (r, inflect), as released
    assert _plan("tome", r=[8, 1.0]).mlp[0] == 196  # so is what JSON makes of it
    inflected = slim.methods.ToMe(r=(8, 1))
    assert slim.methods.ToMe(**inflected.options()).r == inflected.r == (8, 1.0)


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("vit", {"reg_tokens": 4}),
        ("vit", {"reg_tokens": 3, "qk_norm": True}),
        ("vit", {"class_token": False, "global_pool": "avg"}),
        ("vit", {"global_pool": "avg", "prop_attn": False}),
    ],
)
def test_tome_on_other_backbones(family, options):
    model, variables = built(family, "tome", r=5, track_source=True, **options)
    logits, aux = run(model, variables, IMAGES)
    prefix = model.geometry.prefix_tokens
    assert np.isfinite(logits).all() and model.slim.plan.mlp == (31, 26, 21, 16)
    source = np.asarray(aux.taps["source"], np.int64)
    np.testing.assert_array_equal(source.sum(1), 1)  # every original token is in exactly one
    np.testing.assert_array_equal(source.sum(2), aux.taps["size"])
    np.testing.assert_array_equal(source[:, :prefix, :prefix], [np.eye(prefix)] * 2)


def test_tome_average_pooling_weighs_by_size():
    """Merging identical patches changes nothing: proportional attention and weighted pooling undo it."""
    options = dict(class_token=False, global_pool="avg")
    dense, variables = built("vit", None, **options)
    params = {**variables["params"], "pos_embed": jnp.zeros_like(variables["params"]["pos_embed"])}
    patch = jax.random.normal(jax.random.key(1), (3, 1, 4, 1, 4, 3))
    images = jnp.tile(patch, (1, 6, 1, 6, 1, 1)).reshape(3, 24, 24, 3)
    model, _ = built("vit", "tome", r=9, **options)
    expected, _ = run(dense, {"params": params}, images)
    logits, _ = run(model, {"params": params}, images)
    np.testing.assert_allclose(logits, expected, atol=1e-5)
