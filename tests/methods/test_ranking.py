"""EViT, top-k, random, DynamicViT and ToMe: rankings against the official code, plans, options, costs."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import AS_USERS, Golden, close, run, small

import slimvit_jax as slim
from slimvit_jax.errors import SlimError

TINY = dict(img_size=24, patch_size=4, embed_dim=32, depth=4, num_heads=2, num_classes=5)  # 36 patches
built = functools.partial(small, **TINY)
TWO = dict(locations=(2, 3))
IMAGES = jax.random.normal(jax.random.key(7), (2, 24, 24, 3))
ROUND = ("orig_idx_layer3", "orig_idx_layer6", "orig_idx_layer9")
STAGES = ("kept_stage0", "kept_stage1", "kept_stage2")


@pytest.mark.parametrize(
    ("case", "method", "options", "indices"),
    [
        ("evit_fuse", "evit", {}, ROUND),
        ("evit_nofuse", "evit", {"fuse_token": False}, ROUND),
        ("topk", "topk", {}, ROUND),
        ("dynamicvit", "dynamicvit", {"token_ratio": (0.7, 0.49, 0.343)}, STAGES),
    ],
)
def test_ranking_goldens(case, method, options, indices):
    golden = Golden.load(case)
    model, variables = golden.model(method, **options)
    logits, aux = run(model, variables, golden.images, compiler_options=AS_USERS)
    close(logits, golden.out("logits"))
    assert len(aux.kept) == 3
    for kept, name in zip(aux.kept, indices, strict=True):
        np.testing.assert_array_equal(kept, golden.out(name))  # without the token fused at this reduction
    if case == "evit_fuse":
        np.testing.assert_array_equal(model.slim.plan.mlp, golden.out("left_tokens"))
        for ours, layer in zip(aux.taps["class_attention"], (3, 6, 9), strict=True):
            close(ours, golden.out(f"cls_attn_layer{layer}"), 1e-6)
        np.testing.assert_array_equal(aux.scores, aux.taps["class_attention"][0])
    if case == "dynamicvit":
        np.testing.assert_array_equal(np.add(aux.token_counts, 1), golden.out("tokens_per_block"))
        close(aux.scores, golden.out("score_stage0"))


def _plan(method, **options):
    return slim.create_model("deit_small_patch16_224", method=method, **options).slim.plan


def test_plans():
    assert _plan("evit").mlp[3::3] == (139, 99, 71)
    assert _plan("evit", fuse_token=False).mlp[3::3] == (138, 97, 68)
    assert _plan("topk").mlp[3::3] == (137, 96, 67)
    assert _plan("topk").attention[3::3] == (196, 137, 96)
    assert _plan("topk", token_ratio=(0.9, 0.5, 0.1)).mlp[3::3] == (176, 98, 19)
    assert _plan("topk", keep_rate=(0.9, 0.5, 1.0)).mlp[3::3] == (176, 88, 88)
    assert _plan("dynamicvit").attention[3::3] == (137, 96, 67)
    assert _plan("random").attention == _plan("life_regression").attention
    assert _plan("tome", r=13).mlp[-1] == 40
    assert _plan("tome", r=20).mlp == (176, 156, 136, 116, 96, 76, 56, 36, 18, 9, 5, 3)  # clamped, as released
    assert _plan("evit", keep_rate=(1.0, 0.5, 1.0)).mlp[3::3] == (196, 99, 99)
    mean = sum(_plan("tome", keep_rate=0.7).mlp) / 12 / 196
    assert abs(mean - 0.7) < 0.02 and _plan("tome", keep_rate=1.0).mlp == (196,) * 12


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("evit", {"keep_rate": 0.0}, "keep_rate=0.0"),
        ("evit", {"keep_rate": (0.5, 0.5)}, "2 rates for 3 locations"),
        ("evit", {"locations": (4, 13)}, "1..12"),
        ("evit", {"fuse_token": 1}, "fuse_token=1"),
        ("evit", {"fuse": True}, "unknown option"),
        ("topk", {"token_ratio": (0.7, 0.5)}, "token_ratio"),
        ("topk", {"token_ratio": (0.5, 0.7, 0.5)}, "must not grow"),
        ("dynamicvit", {"token_ratio": 0.7}, "token_ratio=0.7"),
        ("dynamicvit", {"token_loss": "l1"}, "kl, mse"),
        ("dynamicvit", {"temperature": 0.0}, "temperature=0.0"),
        ("dynamicvit", {"gumbel": None}, "gumbel=None"),
        ("random", {"seed": -1}, "seed=-1"),
        ("random", {"locations": ()}, "locations"),
        ("tome", {"r": 99}, r"no more than half of the 196 patches.*0\.\.98"),
        ("tome", {"r": (0, 0, 99)}, "r must lie"),
        ("tome", {"r": -1}, "r=-1"),
        ("tome", {"r": 2.5}, r"r=2\.5"),
        ("tome", {"r": (8, 1.5)}, "inflect"),
        ("tome", {"r": (1,) * 13}, "13 entries for 12 layers"),
        ("tome", {"keep_rate": 1.5}, "keep_rate=1.5"),
        ("tome", {"prop_attn": "yes"}, "prop_attn='yes'"),
    ],
)
def test_bad_options_are_refused_at_construction(method, options, message):
    with pytest.raises(SlimError, match=message) as error:
        slim.create_model("vit", method=method, **{**TINY, "img_size": 56, "depth": 12, **options})
    assert "\n" not in str(error.value)


def test_flops_count_the_methods():
    dense = slim.flops(slim.create_model("deit_small_patch16_224"))
    for method in ("evit", "topk", "dynamicvit", "random", "tome"):
        report = slim.flops(slim.create_model("deit_small_patch16_224", method=method))
        assert report.total < 0.8 * dense.total, method
        assert report.method < (0.03 if method == "dynamicvit" else 0.005) * dense.total, method
    count = slim.flops(slim.create_model("deit_small_patch16_224", method="dynamicvit")).method
    assert count == (196 + 137 + 96) * (384**2 + 384 * 192 + 192 * 96 + 96 * 2)


@pytest.mark.parametrize("method", ["evit", "topk", "dynamicvit", "random", "tome"])
def test_the_fused_attention_stays_usable(method):
    slimming = slim.create_model("deit_small_patch16_224", method=method).slim
    assert not any("attention" in slimming.needs(layer, train) for layer in range(1, 13) for train in (False, True))


@pytest.mark.parametrize("method", ["evit", "topk"])
def test_prefix_tokens_never_enter_the_selection(method):
    for family, options in (("deit_distilled", {}), ("vit", {"reg_tokens": 3})):
        model, variables = built(family, method, keep_rate=0.5, **TWO, **options)
        logits, aux = run(model, variables, IMAGES)
        assert np.isfinite(logits).all() and aux.scores.shape == (2, 36)
        assert aux.features.shape[1] == model.geometry.prefix_tokens + model.slim.plan.mlp[-1]
        patches = np.asarray(aux.kept[0])
        assert all(len(set(row[row >= 0])) == (row >= 0).sum() and row.max() < 36 for row in patches)


def test_methods_without_parameters_take_the_dense_models_weights():
    _, variables = built()
    for method in ("evit", "topk", "random", "tome"):
        _, own = built("vit", method, **({} if method == "tome" else TWO))
        assert jax.tree.map(jnp.shape, own) == jax.tree.map(jnp.shape, variables)
