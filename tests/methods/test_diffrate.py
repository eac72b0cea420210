"""DiffRate: parity with the official code, published counts, its rule by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import Golden, close, groups, random_variables

import slimvit_jax as slim
from slimvit_jax.errors import SlimError
from slimvit_jax.losses import Targets
from slimvit_jax.methods import diffrate, diffrate_counts
from slimvit_jax.ops import merge, rates

TINY = dict(img_size=24, patch_size=4, embed_dim=32, depth=3, num_heads=2, num_classes=5)  # 36 patches


def test_golden():
    golden = Golden.load("diffrate")
    options = {key: tuple(counts) for key, counts in golden.meta["hyper"].items()}
    model, variables = golden.model("diffrate", **options)
    apply = jax.jit(lambda v, x: model.apply(v, x, return_aux=True))
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
    entry = diffrate_counts.presets()[model]
    patch = 14 if entry["patches"] == 256 else 16
    return dict(patch_size=patch, embed_dim=entry["dim"], depth=entry["depth"], num_heads=entry["dim"] // 64)


def test_every_preset_costs_what_its_name_says():
    names = {model: list(entry["counts"]) for model, entry in diffrate_counts.presets().items()}
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
        ({"preset": "2.9"}, "counts are published for .* this one has width 32, depth 3 and 36 patches"),
        ({"preset": "2.9", "img_size": 384, "model": "deit_small_patch16_224"}, "this one has width 384, depth 12"),
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
    apply = jax.jit(lambda x: model.apply(variables, x, scores=scores, return_aux=True))
    owner = np.asarray(apply(jnp.ones((1, 24, 24, 3)))[1].taps["owner"])[0, 1:]
    np.testing.assert_array_equal(np.flatnonzero(owner >= 0), np.sort(np.argsort(-scores[0])[:10]))


# Learning the counts -------------------------------------------------------------------------------------------------


def learning(**options):
    """A model that learns its counts, and variables that keep 30, 24 and 16 (14 behind the merge), 8 of 36 patches."""
    size = {**TINY, "depth": 4}
    model = slim.create_model("vit", method="diffrate", target_flops=0.6, granularity=2, **size, **options)
    variables = random_variables(model)
    places = jnp.asarray([[3, 6, 14], [6, 11, 14]])  # of the candidates 36, 34, ...
    prune, merged = 50.0 * jax.nn.one_hot(places, 18) + 0.3 * jax.random.normal(jax.random.key(2), (2, 3, 18))
    variables["params"]["slim"] = {"prune_rates": prune, "merge_rates": merged}
    return model, variables


@pytest.mark.parametrize("pooling", ["token", "avg"])
def test_what_is_learned_is_what_its_counts_compute(pooling):
    model, variables = learning(global_pool=pooling)
    options = diffrate.found_counts(model, variables)
    assert options == {"prune_kept_num": (37, 31, 25, 9), "merge_kept_num": (37, 25, 15, 9)}
    static = slim.create_model("vit", method="diffrate", **options, **{**TINY, "depth": 4}, global_pool=pooling)
    images = jax.random.normal(jax.random.key(7), (2, 24, 24, 3))
    run = lambda m, v: jax.jit(lambda v: m.apply(v, images, return_aux=True))(v)
    logits, aux = run(model, variables)
    expected, reference = run(static, {"params": {k: v for k, v in variables["params"].items() if k != "slim"}})
    np.testing.assert_allclose(logits, expected, atol=2e-5)
    np.testing.assert_array_equal(groups(aux.taps["owner"]), groups(reference.taps["owner"]))
    grids = slim.grid_features(model, aux), slim.grid_features(static, reference)
    np.testing.assert_allclose(*grids, atol=2e-5)  # of patches merged, dropped and masked
    plan, hidden = static.slim.plan, 4 * 32
    cost = lambda a, m: 4 * a * 32**2 + 2 * a**2 * 32 + 2 * m * 32 * hidden
    share = sum(cost(a + 1, m + 1) for a, m in zip(plan.attention, plan.mlp, strict=True)) / (4 * cost(37, 37))
    np.testing.assert_allclose(aux.taps["flops_share"], share, rtol=1e-6)


def test_counts_learn():
    model, variables = learning()
    images, labels = jax.random.normal(jax.random.key(7), (2, 24, 24, 3)), jax.nn.one_hot(jnp.asarray([1, 2]), 5)

    def loss(own):
        params = {**variables["params"], "slim": own}
        logits, aux = model.apply({"params": params}, images, train=True, return_aux=True)
        losses = model.slim.loss_terms(logits, aux, Targets(labels))
        assert set(losses) == set(model.slim.loss_weights) == {"classification", "flops"}
        return losses["classification"].mean(), losses["flops"].mean()

    fewer = jnp.linspace(0, 1, 18) * jnp.arange(1.0, 4.0)[:, None]  # in every layer, and fewer behind the merge
    own = {"prune_rates": fewer, "merge_rates": 1.5 * fewer}
    either = jax.jit(jax.jacrev(loss))(own)
    for gradients in either:
        for name, gradient in gradients.items():
            assert gradient.shape == (3, 18) and np.isfinite(gradient).all(), name
            assert (np.abs(gradient).max(axis=1) > 0)[:2].all(), name  # the class token sees nothing of the last one


def test_learned_numbers_by_hand():
    numbers = rates.candidates(7, 2)
    assert numbers.tolist() == [7, 5, 3, 1]
    logits = jnp.log(jnp.asarray([0.1, 0.2, 0.3, 0.4]))
    kept, gradient = jax.value_and_grad(lambda z: rates.kept_number(z, numbers))(logits)
    assert kept == 3  # of the expectation 0.7 + 1 + 0.9 + 0.4, exactly 3; a number between rounds up
    np.testing.assert_allclose(gradient, np.asarray([0.1, 0.2, 0.3, 0.4]) * (numbers - 3), atol=1e-6)
    np.testing.assert_allclose(rates.survival(logits, numbers), [1, 0.6, 0.6, 0.3, 0.3, 0.1, 0.1], rtol=1e-5)
    scores, held = jnp.asarray([[1.0, 5, 3, 9]]), jnp.asarray([[True, True, True, False]])
    ranks = rates.ranks_of(scores, held)
    np.testing.assert_array_equal(ranks, [[2, 0, 1, 3]])
    chance = jnp.asarray([1.0, 0.9, 0.5, 0.1])
    mask = lambda p, before, after: rates.rank_mask(ranks, p, before, after)
    np.testing.assert_allclose(mask(chance, 3, 2), [[0, 1, 1, 1]])  # the fourth went earlier
    np.testing.assert_allclose(jax.jacrev(lambda p: mask(p, 3, 2)[0, 0])(chance), [0, 0, 1, 0])
    np.testing.assert_allclose(jax.jacrev(lambda p: mask(p, 3, 3).sum())(chance), [0, 0, 0, 0])  # nothing to decide


def test_rates_go_to_their_target():
    numbers = rates.candidates(36, 4)

    def loss(logits):
        kept = [(rates.kept_number(p, numbers), rates.kept_number(m, numbers)) for p, m in zip(*logits, strict=True)]
        return (rates.layers_share(kept, 36, 1, 32, 128) - 0.85) ** 2

    logits, step = jnp.zeros((2, 3, 9)), jax.jit(lambda z: z - 20.0 * jax.grad(loss)(z))
    assert loss(logits) > 0.02
    for _ in range(60):
        logits = step(logits)
    assert loss(logits) < 1e-3


def test_counts_that_are_not_learned_are_not_read():
    model = slim.create_model("vit", method="diffrate", keep_rate=0.7, **TINY)
    with pytest.raises(SlimError, match="learns no counts"):
        diffrate.found_counts(model, {"params": {}})
    with pytest.raises(SlimError, match="preset and target_flops"):
        slim.create_model("deit_small_patch16_224", method="diffrate", preset="2.9", target_flops=0.6)
