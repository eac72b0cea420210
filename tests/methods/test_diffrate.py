"""DiffRate: parity with the official code, published counts, its rule by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import FAST_COMPILE, Golden, close, groups

import slimvit_jax as slim
from slimvit_jax.errors import SlimError
from slimvit_jax.methods import diffrate
from slimvit_jax.ops import merge

TINY = dict(img_size=24, patch_size=4, embed_dim=32, depth=3, num_heads=2, num_classes=5)  # 36 patches


def test_golden():
    golden = Golden.load("diffrate")
    options = {key: tuple(counts) for key, counts in golden.meta["hyper"].items()}
    model, variables = golden.model("diffrate", **options)
    apply = jax.jit(lambda v, x: model.apply(v, x, return_aux=True), compiler_options=FAST_COMPILE)
    logits, aux = apply(variables, golden.images)
    close(logits, golden.out("logits"))
    np.testing.assert_array_equal(np.add(model.slim.plan.mlp, 1), golden.out("tokens_after_block"))
    np.testing.assert_array_equal(groups(aux.taps["owner"]), golden.out("group_11"))
    for block in range(1, 12):  # neighbours may change places, which changes nothing else
        ours, official = aux.taps["class_attention"][block - 1], golden.out(f"cls_attn_{block}")
        close(np.sort(ours, axis=1), np.sort(official, axis=1), 1e-6)
    close(np.sort(aux.taps["size"], axis=1), np.sort(golden.out("size_11"), axis=1), 1e-5)
    assert aux.kept is None
    preset = slim.create_model("deit_small_patch16_224", method="diffrate", preset="2.9")
    assert preset.slim.plan == model.slim.plan  # these are its counts


# FLOPs that the README of OpenGVLab/DiffRate reports for the models evaluated with these counts.
@pytest.mark.parametrize(
    ("model", "preset", "reported"),
    [
        ("deit_small", "2.9", 2.905),
        ("deit_base", "11.5", 11.517),
        ("mae_base", "mae:11.5", 11.517),
        ("mae_large", "42.3", 42.290),
        ("mae_huge", "103.4", 103.337),
    ],
)
def test_presets_cost_what_their_authors_report(model, preset, reported):
    built = slim.create_model("vit", method="diffrate", preset=preset, **_size(model))
    report = slim.flops(built)
    class_token = 16**2 * 3 * built.embed_dim if "huge" not in model else 14**2 * 3 * built.embed_dim  # counted there
    assert f"{(report.total - report.method + class_token) / 1e9:.3f}" == f"{reported:.3f}"


def _size(model):
    entry = diffrate.presets()[model]
    patch = 14 if entry["patches"] == 256 else 16
    return dict(patch_size=patch, embed_dim=entry["dim"], depth=entry["depth"], num_heads=entry["dim"] // 64)


def test_every_preset_costs_what_its_name_says():
    names = {model: list(entry["counts"]) for model, entry in diffrate.presets().items()}
    assert list(names) == ["deit_tiny", "deit_small", "deit_base", "mae_base", "mae_large", "mae_huge"]
    named_too_low = {("deit_tiny", "0.6"): 0.655, ("deit_tiny", "0.7"): 0.726}  # as published
    for model, presets in names.items():
        for name in presets:
            preset = f"{model.split('_')[0]}:{name}"
            report = slim.flops(slim.create_model("vit", method="diffrate", preset=preset, **_size(model)))
            expected = named_too_low.get((model, name), float(name))
            assert (report.total - report.method) / 1e9 == pytest.approx(expected, rel=0.012), (model, name)


def test_presets_are_chosen_by_the_model():
    base = slim.create_model("deit_base_patch16_224", method="diffrate", preset=11.5).slim
    assert base.preset == "11.5" and base.plan.mlp[3] == 177
    mae = slim.create_model("deit_base_patch16_224", method="diffrate", preset="mae:11.5").slim
    assert mae.plan.mlp[3] == 163
    assert slim.create_model("deit_base_patch16_224", method="diffrate", preset=10).slim.preset == "10.0"
    counts = slim.create_model("deit_tiny_patch16_224", method="diffrate", preset="1.0").slim.counts
    assert counts[6:8] == ((153, 147), (147, 147))  # published lists are not monotone
    distilled = slim.create_model("deit_small_distilled_patch16_224", method="diffrate", preset="2.9").slim
    assert distilled.plan.mlp[-1] == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "2.9"}, "counts are published for .* this model has width 32, depth 3 and 36 patches"),
        ({"preset": "2.9", "img_size": 384, "model": "deit_small_patch16_224"}, "this model has width 384, depth 12"),
        ({"preset": "3.0", "model": "deit_small_patch16_224"}, "choices: .*2.9"),
        ({"preset": "2.9", "keep_rate": 0.7, "model": "deit_small_patch16_224"}, "preset and keep_rate are given"),
        ({"preset": ("2.9",)}, "preset="),
        ({"prune_kept_num": (30, 20)}, "2 entries for 3 layers"),
        ({"prune_kept_num": (37, 20, 1)}, "must not fall below 2"),
        ({"merge_kept_num": (37, 20, 0)}, "whole number of at least 1"),
        ({"merge_kept_num": (37, 20.5, 9)}, "whole number of at least 1"),
        ({"merge_kept_num": 20}, "merge_kept_num=20"),
        ({"prune_kept_num": (37, 20, 9), "keep_rate": 0.5}, "prune_kept_num and keep_rate"),
        ({"keep_rate": 1.5}, "keep_rate=1.5"),
        ({"class_token": False, "global_pool": "avg"}, "class token"),
        ({"model": "levit_128s"}, "cannot run on this backbone"),
    ],
)
def test_bad_options_are_refused_at_construction(options, message):
    options = dict(options)
    name = options.pop("model", "vit")
    with pytest.raises(SlimError, match=message) as error:
        slim.create_model(name, method="diffrate", **({} if name != "vit" else TINY), **options)
    assert "\n" not in str(error.value)


def _counts(**options):
    return slim.create_model("vit", method="diffrate", **TINY, **options).slim.counts


def test_counts():
    assert _counts(prune_kept_num=(37, 31, 99), merge_kept_num=(37, 21, 11)) == ((36, 36), (30, 20), (20, 10))
    assert _counts(prune_kept_num=(37, 31, 11)) == ((36, 36), (30, 30), (10, 10))  # nothing is merged
    assert _counts(merge_kept_num=[30, 31, 11]) == ((36, 29), (29, 29), (29, 10))  # nothing is dropped
    assert _counts(keep_rate=1.0) == ((36, 36),) * 3
    assert _counts(keep_rate=0.75) == ((36, 36), (31, 27), (22, 18))
    assert _counts() == _counts(keep_rate=0.7)
    for rate in (0.9, 0.7, 0.3):
        plan = slim.create_model("deit_small_patch16_224", method="diffrate", keep_rate=rate).slim.plan
        assert abs(sum(plan.mlp) / 12 / 196 - rate) < 0.005


def test_matching_by_hand():
    # Behind a class token patches on the unit circle; the order says 3, 0, 2, 1 and that 4 vanishes.
    angles = jnp.asarray([0.0, 0.0, 0.4, 2.0, 2.1, 0.0])
    x = 3 * jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=-1)[None]
    matching, cosine = merge.ranked_matching(x, jnp.asarray([[3, 0, 2, 1]]), 2, 1)
    np.testing.assert_array_equal(matching.held, [[0, 4, 1]])
    np.testing.assert_array_equal(matching.source, [[3, 2]])
    np.testing.assert_array_equal(matching.target, [[1, 2]])  # not the class token, though patch 1 is near it too
    np.testing.assert_allclose(cosine, [[np.cos(0.1), np.cos(0.4)]], rtol=1e-6)


def test_imposed_scores_rank_the_patches():
    model = slim.create_model("vit", method="diffrate", prune_kept_num=(11, 11, 11), **TINY)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 24, 24, 3)))
    scores = jax.random.normal(jax.random.key(1), (1, 36))
    apply = jax.jit(lambda x: model.apply(variables, x, scores=scores, return_aux=True), compiler_options=FAST_COMPILE)
    owner = np.asarray(apply(jnp.ones((1, 24, 24, 3)))[1].taps["owner"])[0, 1:]
    np.testing.assert_array_equal(np.flatnonzero(owner >= 0), np.sort(np.argsort(-scores[0])[:10]))
