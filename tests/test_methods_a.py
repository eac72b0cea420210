"""EViT, top-k, random, DynamicViT and ToMe: parity with the official code, the algebra by hand, options, properties."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import AS_USERS, Golden, close, random_variables

import slimvit_jax as slim
from slimvit_jax import losses
from slimvit_jax.errors import SlimError
from slimvit_jax.methods.evit import keep_rate_schedule
from slimvit_jax.methods.tome import per_layer
from slimvit_jax.ops import merge
from slimvit_jax.plan import Geometry
from slimvit_jax.tokens import Tokens

TINY = dict(img_size=24, patch_size=4, embed_dim=32, depth=4, num_heads=2, num_classes=5)  # 36 patches
TWO = dict(locations=(2, 3))
IMAGES = jax.random.normal(jax.random.key(7), (2, 24, 24, 3))
ROUND = ("orig_idx_layer3", "orig_idx_layer6", "orig_idx_layer9")
STAGES = ("kept_stage0", "kept_stage1", "kept_stage2")


def run(model, variables, images, compiler_options=None, **options):
    apply = jax.jit(lambda v, x: model.apply(v, x, return_aux=True, **options), compiler_options=compiler_options)
    return apply(variables, images)


def drawn(model, variables, seeds):
    """The aux of the training path for each seed, compiled once."""
    apply = jax.jit(
        lambda key: model.apply(variables, IMAGES, train=True, return_aux=True, rngs={"dropout": key})[1],
    )
    return [apply(jax.random.key(seed)) for seed in seeds]


@functools.cache
def built(family="vit", method=None, **options):
    model = slim.create_model(family, method=method, **{**TINY, **options})
    return model, random_variables(model)


# Goldens ---------------------------------------------------------------------------------------------------------


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


@functools.cache
def _dynamicvit_train():
    golden = Golden.load("dynamicvit_train")
    model, variables = golden.model("dynamicvit", gumbel=False)
    student = run(model, variables, golden.images, train=True)
    teacher, teacher_variables = golden.model(None, prefix="teacher_sd/")
    return golden, model, student, run(teacher, teacher_variables, golden.images)


def test_dynamicvit_training_path_golden():
    golden, _, (logits, aux), (teacher_logits, teacher_aux) = _dynamicvit_train()
    close(logits, golden.out("train_logits"))
    close(aux.features[:, 1:], golden.out("train_features"))
    close(teacher_logits, golden.out("teacher_logits"))
    close(teacher_aux.features[:, 1:], golden.out("teacher_tokens"))
    for stage in range(3):
        close(aux.taps["decisions"][stage], golden.out(f"keep_stage{stage}"), 1e-6)
        close(aux.taps["log_probabilities"][stage], golden.out(f"pred_score_stage{stage}"))
    assert aux.token_counts == (196,) * 10


@pytest.mark.parametrize("kind", ["mse", "kl"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_dynamicvit_losses_golden(kind, dynamic):
    golden, model, (logits, aux), teacher = _dynamicvit_train()
    method = model.slim.clone(token_loss=kind, dynamic=dynamic)
    parts = model.clone(slim=method).losses(logits, aux, slim.Targets(golden.arrays["in/targets"], teacher=teacher))
    ours = {name: losses.mean(value) for name, value in parts.items()}
    reference = {
        name: golden.out(f"loss_{kind}{'_dynamic' * dynamic}_{name}")
        for name in ("cls", "ratio", "cls_kl", "token", "total")
    }
    close(ours["classification"], reference["cls"])
    close(ours["ratio"] * 3, reference["ratio"])  # stored as the sum over the stages
    close(ours["distillation"], reference["cls_kl"])
    close(ours["token_distillation"], reference["token"])
    assert set(ours) == set(method.loss_weights)
    close(sum(method.loss_weights[name] * value for name, value in ours.items()), reference["total"])


BSM = Golden.load("tome_bsm")


@pytest.mark.parametrize("case", BSM.meta["hyper"]["raw_cases"], ids=lambda case: case["name"])
def test_matching_goldens(case):
    name, arrays = case["name"], BSM.arrays
    metric, x, size = (jnp.asarray(arrays[f"in/{name}/{key}"]) for key in ("metric", "x", "size"))
    protected = case["class_token"] + case["distill_token"]
    if case["r"] == 0:
        assert merge.bipartite_soft_matching(metric, 0, protected) is None
        return

    def everything(metric, x, size):
        matching = merge.bipartite_soft_matching(metric, case["r"], protected)
        everyone = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
        unit, sized = (merge.merge_weighted(matching, x, s) for s in (jnp.ones(x.shape[:2]), size[..., 0]))
        return {
            "merge_mean": merge.merge_mean(matching, x),
            "x_unit": unit[0],
            "size_unit": unit[1][..., None],
            "x_sized": sized[0],
            "size_sized": sized[1][..., None],
            "source": merge.membership(merge.merge_owner(matching, everyone), matching.held.shape[1]),
            "unmerged": merge.unmerge(matching, unit[0]),
        }

    results = jax.jit(everything)(metric, x, size)
    for key, ours in results.items():
        if key != "unmerged" or not case["distill_token"]:  # the release's unmerge forgets its own re-ordering there
            close(ours, BSM.out(f"{name}/{key}"), 1e-6)


# Small enough to check on paper ----------------------------------------------------------------------------------


def _six_tokens():
    """A class token and five patches of one channel with values 10, 1, 2, 3, 4, 5."""
    x = jnp.asarray([[10.0, 1, 2, 3, 4, 5]])[..., None]
    return Tokens(x=x, origin=jnp.arange(5, dtype=jnp.int32)[None])


def _bound(method):
    return method.bind(Geometry(grid=(1, 5), depth=1, dim=1, heads=2))


def test_evit_by_hand():
    method = _bound(slim.methods.EViT(keep_rate=0.4, locations=(1,)))
    # Two heads; the mean is what counts: .1 .5 .15 .05 .1 for the patches.
    attention = jnp.asarray([[[0.1, 0.0, 0.8, 0.1, 0.0, 0.0], [0.1, 0.2, 0.2, 0.2, 0.1, 0.2]]])
    tokens = method.after_attention(_six_tokens(), 1, {"class_attention": attention}, False)
    np.testing.assert_allclose(tokens.x[0, :, 0], [10, 2, 3, 0.1 * 1 + 0.05 * 4 + 0.1 * 5], rtol=1e-6)
    np.testing.assert_array_equal(tokens.origin, [[1, 2, -1]])
    assert method.plan.mlp == (3,) and method.extra_flops() == {1: 6 + 3}


def test_topk_by_hand_and_ties_go_to_the_lower_index():
    method = _bound(slim.methods.TopK(keep_rate=0.6, locations=(1,)))
    attention = jnp.asarray([[[0.5, 0.1, 0.1, 0.2, 0.1, 0.0]]])
    tokens = method.after_attention(_six_tokens(), 1, {"class_attention": attention}, False)
    np.testing.assert_array_equal(tokens.origin, [[2, 0, 1]])


def test_imposed_scores_rank_the_patches():
    method = _bound(slim.methods.TopK(keep_rate=0.4, locations=(1,)))
    tokens = _six_tokens().remember(given_scores=jnp.asarray([[0.0, 1, 0, 0, 2]]))
    attention = jnp.full((1, 1, 6), 1 / 6)
    tokens = method.after_attention(tokens, 1, {"class_attention": attention}, False)
    np.testing.assert_array_equal(tokens.origin, [[4, 1]])


def test_matching_by_hand():
    # Class token, then a b a c a d in the plane: A = (cls, b, c, d), B = (a, a, a) at positions 1, 3, 5.
    angles = jnp.asarray([0.0, 0.0, 0.1, 1.0, 1.3, 2.0, 1.95])
    metric = jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=-1)[None]
    matching = merge.bipartite_soft_matching(metric, 2, 1)
    np.testing.assert_array_equal(matching.source, [[6, 2]])  # 0.05 apart, then 0.1
    np.testing.assert_array_equal(matching.held, [[0, 4, 1, 3, 5]])
    np.testing.assert_array_equal(matching.target, [[4, 2]])
    values = jnp.arange(7.0)[None, :, None]
    merged, size = merge.merge_weighted(matching, values, jnp.asarray([[1.0, 1, 3, 1, 1, 1, 1]]))
    np.testing.assert_allclose(merged[0, :, 0], [0, 4, (1 + 3 * 2) / 4, 3, 5.5])
    np.testing.assert_array_equal(size, [[1, 1, 4, 1, 2]])


@pytest.mark.parametrize("protected", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("length", [6, 7, 12, 13])
def test_matching_properties(protected, length):
    r = merge.most_merges(length, protected)
    metric, x = jax.random.normal(jax.random.key(length), (2, 2, length, 3))
    metric = metric.at[:, -1].set(0)  # a zero vector
    size = jnp.asarray(np.random.default_rng(0).integers(1, 5, (2, length)), jnp.float32)
    if r == 0:
        assert merge.bipartite_soft_matching(metric, 99, protected) is None
        return

    def everything(metric, x, size):
        matching = merge.bipartite_soft_matching(metric, 99, protected)
        return matching, *merge.merge_weighted(matching, x, size), merge.merge_sum(matching, x)

    matching, merged, new_size, summed = jax.jit(everything)(metric, x, size)
    assert matching.held.shape == (2, length - r)
    positions = jnp.concatenate([matching.held, matching.source], axis=1)
    np.testing.assert_array_equal(jnp.sort(positions, axis=1), [list(range(length))] * 2)
    np.testing.assert_array_equal(matching.held[:, :protected], [list(range(protected))] * 2)
    assert (np.asarray(matching.target) >= protected).all()
    np.testing.assert_allclose(new_size.sum(1), size.sum(1))
    np.testing.assert_allclose(jnp.einsum("bn,bnd->bd", new_size, merged), jnp.einsum("bn,bnd->bd", size, x), atol=1e-4)
    np.testing.assert_array_equal(merged[:, :protected], x[:, :protected])
    np.testing.assert_allclose(summed.sum(1), x.sum(1), atol=1e-5)


def test_losses_by_hand():
    decisions = (jnp.asarray([[1.0, 1, 0, 0], [1, 1, 1, 1]]),)
    close(losses.keep_ratio(decisions, (0.5,)), np.float64([0, 0.25]))
    close(losses.keep_ratio(decisions, (0.5,), per_image=False), np.float64([0.25**2] * 2))
    close(losses.keep_ratio(decisions, (0.5,), per_image=False, mask=jnp.asarray([1.0, 0])), np.float64([0, 0]))
    tokens, teacher = jnp.asarray([[[1.0, 2], [5, 5]]]), jnp.asarray([[[1.0, 0], [0, 0]]])
    close(losses.token_distillation(tokens, teacher, jnp.asarray([[1.0, 0]])), np.float64([2.0]))
    for kind in ("mse", "kl"):
        nothing = lambda t, kind=kind: losses.token_distillation(t, teacher, jnp.zeros((1, 2)), kind).sum()
        value, gradient = jax.value_and_grad(nothing)(tokens)
        assert value == 0 and (gradient == 0).all()


def test_keep_rate_schedule():
    rates = keep_rate_schedule(0.5, 300, start=10, end=100, levels=4)
    assert rates[:11] == (1.0,) * 11 and rates[100:] == (0.5,) * 200
    assert sorted(set(rates)) == [0.5, 0.625, 0.75, 0.875, 1.0]
    assert all(b <= a for a, b in zip(rates, rates[1:], strict=False))
    exact = [0.5 + 0.25 * (np.cos(np.pi * (e - 10) / 90) + 1) for e in range(10, 100)]
    assert max(abs(a - b) for a, b in zip(rates[10:], exact, strict=False)) <= 0.0625 + 1e-6
    assert set(keep_rate_schedule(0.7, 5, start=0, end=0)) == {0.7}
    with pytest.raises(SlimError, match="levels=0"):
        keep_rate_schedule(0.7, 5, levels=0)


# Plans and options -----------------------------------------------------------------------------------------------


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


# Properties ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["evit", "topk"])
def test_prefix_tokens_never_enter_the_selection(method):
    for family, options in (("deit_distilled", {}), ("vit", {"reg_tokens": 3})):
        model, variables = built(family, method, keep_rate=0.5, **TWO, **options)
        logits, aux = run(model, variables, IMAGES)
        assert np.isfinite(logits).all() and aux.scores.shape == (2, 36)
        assert aux.features.shape[1] == model.geometry.prefix_tokens + model.slim.plan.mlp[-1]
        patches = np.asarray(aux.kept[0])
        assert all(len(set(row[row >= 0])) == (row >= 0).sum() and row.max() < 36 for row in patches)


def test_evit_that_keeps_all_but_one_notes_the_reduction():
    model, variables = built("vit", "evit", keep_rate=0.97, locations=(2,))
    _, aux = run(model, variables, IMAGES)
    assert model.slim.plan.mlp == (36,) * 4  # one dropped, one fused
    assert len(aux.kept) == 1 and aux.kept[0].shape[1] == 35 and (aux.kept[0] >= 0).all()


def test_random_is_the_same_everywhere_at_inference_and_differs_in_training():
    model, variables = built("vit", "random", keep_rate=0.5, **TWO)
    _, aux = run(model, variables, IMAGES)
    np.testing.assert_array_equal(aux.kept[0][0], aux.kept[0][1])
    np.testing.assert_array_equal(aux.kept[1], aux.kept[0][:, : aux.kept[1].shape[1]])
    other = slim.create_model("vit", method="random", keep_rate=0.5, seed=1, **TWO, **TINY)
    assert (run(other, variables, IMAGES)[1].kept[0] != aux.kept[0]).any()
    first, again, other = (np.asarray(aux.kept[0]) for aux in drawn(model, variables, (0, 0, 1)))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any() and (first[0] != first[1]).any()
    scores = jax.random.normal(jax.random.key(3), (2, 36))
    _, given = run(model, variables, IMAGES, scores=scores)
    np.testing.assert_array_equal(given.kept[0], jnp.argsort(-scores, axis=1)[:, :18])
    np.testing.assert_array_equal(given.scores, scores)


def test_dynamicvit_decisions():
    model, variables = built("vit", "dynamicvit", keep_rate=0.5, **TWO)
    auxes = drawn(model, variables, (0, 0, 1))
    decisions = [np.asarray(aux.taps["decisions"]) for aux in auxes]
    np.testing.assert_array_equal(decisions[0], decisions[1])
    assert (decisions[0] != decisions[2]).any()
    np.testing.assert_allclose(decisions[0], decisions[0].round(), atol=1e-6)
    assert (decisions[0][1] <= decisions[0][0] + 1e-6).all()  # dropped patches do not come back
    np.testing.assert_array_equal(auxes[0].scores, auxes[0].taps["log_probabilities"][0][..., 0])


@pytest.mark.parametrize("teacher", [False, True])
def test_dynamicvit_stays_finite_where_an_image_drops_everything(teacher):
    model, variables = built("vit", "dynamicvit", gumbel=False, **TWO)
    params = jax.tree.map(lambda a: a, variables["params"])
    params["slim"]["score_predictor_0"]["out_conv_4"]["bias"] = jnp.asarray([-30.0, 30.0])
    labels = jax.nn.one_hot(jnp.asarray([0, 1]), 5)

    def loss(params):
        logits, aux = model.apply({"params": params}, IMAGES, train=True, return_aux=True)
        parts = model.losses(logits, aux, slim.Targets(labels, teacher=(logits, aux) if teacher else None))
        return sum(parts.values()).mean(), (logits, aux.taps["decisions"], parts)

    (_, (logits, decisions, parts)), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    assert decisions[-1].max() < 1e-6 and np.isfinite(logits).all()
    assert set(parts) == (set(model.slim.loss_weights) if teacher else {"classification", "ratio"})
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))


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


def test_methods_without_parameters_take_the_dense_models_weights():
    _, variables = built()
    for method in ("evit", "topk", "random", "tome"):
        _, own = built("vit", method, **({} if method == "tome" else TWO))
        assert jax.tree.map(jnp.shape, own) == jax.tree.map(jnp.shape, variables)
