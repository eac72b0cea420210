"""A-ViT, Evo-ViT, SiT and IA-RED2: parity with the official code, the algebra by hand, options, properties."""

from __future__ import annotations

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import Golden, close

import slimvit_jax as slim
from slimvit_jax import losses as loss_functions
from slimvit_jax.convert import rules
from slimvit_jax.errors import SlimError
from slimvit_jax.methods import avit, evo, evo_names, ia_red2, sit
from slimvit_jax.plan import Geometry
from slimvit_jax.training import optim

TINY = dict(img_size=16, patch_size=4, embed_dim=24, depth=3, num_heads=2, num_classes=5)  # 16 patches
IMAGES = jax.random.normal(jax.random.key(7), (3, 16, 16, 3))
LABELS = jax.nn.one_hot(jnp.array([1, 2, 3]), 5)
KEY = {"dropout": jax.random.key(3)}
METHODS = {
    "avit": dict(gate_scale=3.0, gate_center=2.0),
    "evo": dict(locations=(2, 3)),
    "sit": dict(locations=(1, 2)),
    "ia_red2": dict(locations=(1, 3)),
}
FAMILIES = {"vit": {}, "deit_distilled": {}, "registers": dict(reg_tokens=2, no_embed_class=True)}


def run(model, variables, images, **options):
    return jax.jit(lambda v, x: model.apply(v, x, return_aux=True, **options))(variables, images)


@functools.cache
def built(family="vit", method=None, **options):
    name = family if family in ("vit", "deit_distilled") else "vit"
    model = slim.create_model(name, method=method, **{**TINY, **FAMILIES.get(family, {}), **options})
    shapes = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
    # Larger than initial values are, so that tokens and images differ as in a trained model.
    random = np.random.default_rng(0)
    fill = lambda path, a: 0.2 * random.standard_normal(a.shape, np.float32) + ("scale" in jax.tree_util.keystr(path))
    return model, jax.tree_util.tree_map_with_path(lambda path, a: jnp.asarray(fill(path, a), a.dtype), shapes)


# Goldens ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["avit", "avit_soft"])
def test_avit_goldens(case):
    golden, hyper = Golden.load(case), Golden.load(case).meta["hyper"]
    gate = dict(gate_scale=hyper["gate_scale"], gate_center=hyper["gate_center"])
    model, variables = golden.model("avit", **gate)
    logits, aux = run(model, variables, golden.images)
    close(logits, golden.out("logits"))
    close(aux.taps["rho"], golden.out("rho_token"))
    close(jnp.stack(aux.taps["halting_scores"]), golden.out("halting_score"))
    np.testing.assert_array_equal(aux.taps["counter"], golden.out("counter_token"))
    np.testing.assert_array_equal(jnp.stack(aux.taps["active_masks"]), golden.out("active_mask"))
    losses = model.losses(logits, aux, slim.Targets(jnp.full((2, 20), 0.05)))
    losses = {name: loss_functions.mean(value) for name, value in losses.items()}
    close(losses["ponder"] * hyper["ponder_token_scale"], golden.out("ponder_loss"), 1e-7)
    close(losses["distribution_prior"] * hyper["distr_prior_alpha"], golden.out("distr_prior_loss"), 1e-6)
    close(avit.layer_scores(jnp.stack(aux.taps["halting_scores"]), "official"), golden.out("halting_score_layer"))
    close(avit.target_distribution(12, 8), golden.out("distr_target"), 1e-6)
    if case == "avit_soft":  # budgets that cut halted patches alone change nothing
        most = golden.out("active_mask")[:, :, 1:].sum(-1).max(1)
        budgeted, _ = golden.model("avit", **gate, budgets=tuple(map(int, most)))
        fast, fast_aux = run(budgeted, variables, golden.images)
        close(fast, golden.out("logits"))
        close(fast_aux.taps["rho"], golden.out("rho_token"))
        close(fast_aux.features, np.asarray(aux.features))
        assert fast_aux.token_counts == tuple(most) and len(fast_aux.kept) == len(set(most)) - 1


def test_evo_goldens():
    golden = Golden.load("evo_deit")
    model, variables = golden.model("evo", representative=False)
    logits, aux = run(model, variables, golden.images)
    close(logits, golden.out("logits"))
    for k, layer in enumerate((4, 8)):
        n = int(golden.out(f"n_keep_layer{layer}"))
        np.testing.assert_array_equal(aux.kept[k], golden.out(f"perm_layer{layer}")[:, :n])
        close(aux.taps["class_attention"][k], golden.out(f"cls_attn_layer{layer}"), 1e-5)
    assert aux.token_counts == (196,) * 4 + (98,) * 8
    back = slim.to_torch(model, variables)
    assert set(back) == set(golden.state())
    assert all(np.array_equal(back[name], value) for name, value in golden.state().items())

    layerwise, _ = golden.model("evo", representative=False, stage_wise=False, tradeoff=(1.0,) * 4 + (0.5,) * 8)
    logits, aux = run(layerwise, variables, golden.images, train=True, rngs=KEY)
    close(logits, golden.out("layerwise_train_logits"))
    close(aux.taps["class_logits"], golden.out("layerwise_train_logits_cls"))


def test_sit_names_are_the_releases():
    """Names and shapes of the modules; test_lvvit.py checks the numbers, on the release's backbone."""
    state = Golden.load("sit").state()
    options = dict(img_size=28, patch_size=4, embed_dim=48, depth=8, num_heads=3, stage_blocks=(3, 2, 2, 1))
    expected = rules.expected(slim.create_model("vit", method="sit", **options))
    modules = ("tsm.", "rtsm.")
    assert {name: leaf.torch_shape for name, leaf in expected.items() if name.startswith(modules)} == {
        name: value.shape for name, value in state.items() if name.startswith(modules)
    }


# By hand ---------------------------------------------------------------------------------------------------------


def test_halting_prior_by_hand():
    np.testing.assert_allclose(avit.target_distribution(12, 8).sum(), 3.26, atol=5e-3)
    np.testing.assert_allclose(avit.target_distribution(40, 3)[:3].sum(), 0.98)
    halting = jnp.arange(12.0).reshape(2, 2, 3)
    np.testing.assert_allclose(avit.layer_scores(halting, "official"), [4, 10])  # the second image alone
    np.testing.assert_allclose(avit.layer_scores(halting, "all"), [2.5, 8.5])
    np.testing.assert_allclose(avit.layer_scores(halting[:, :1], "official"), [1, 7])  # one image: used whole
    target = np.array([0.25, 0.75])
    expected = (target * np.log(2 * target)).sum() / 2
    close(avit.distribution_prior(jnp.array([1.0, 1.0]), target), expected, 1e-7)
    assert avit.distribution_prior(jnp.array([1.0, 3.0]), target * 0.5) == 0  # negative: not added
    assert jnp.isfinite(avit.distribution_prior(jnp.zeros(40), avit.target_distribution(40, 27)))


def test_evo_algebra_by_hand():
    np.testing.assert_allclose(evo.evolve(jnp.array([1.0, 0.0]), jnp.array([0.0, 2.0]), 0.25), [0.75, 0.5])
    patches = jnp.array([[[1.0, 0.0], [0.0, 1.0]]])
    np.testing.assert_allclose(evo.representative_token(patches, jnp.array([[3.0, 1.0]])), [[[0.75, 0.25]]])
    np.testing.assert_allclose(evo.representative_token(patches, jnp.zeros((1, 2))), [[[0.5, 0.5]]])


def test_evo_names_round_trip_and_timm_names_are_read():
    dense, weights = built(qkv_bias=False)
    model, variables = built(method="evo", locations=(2,), qkv_bias=False)
    timm = slim.to_torch(dense, weights)
    assert evo_names.join_attention(timm) == timm
    split = evo_names.split_attention(timm)
    assert "qks.2.qk.weight" in split and "qks.2.qk.bias" not in split and "norms.0.bias" in split
    joined = evo_names.join_attention(split)
    assert set(joined) == set(timm) and all(np.array_equal(joined[k], timm[k]) for k in timm)
    fresh = slim.from_torch(model, timm, init_missing=("norm_cls", "head_cls"))
    np.testing.assert_array_equal(fresh["params"]["blocks_1"]["attn"]["qkv"]["kernel"],
                                  weights["params"]["blocks_1"]["attn"]["qkv"]["kernel"])  # fmt: skip
    assert set(fresh["params"]["slim"]) == {"norm_cls", "head_cls"}


def evo_reference(model, variables, images):
    """The paper's algorithm literally: representative anew in every layer, placeholders moved in every layer."""
    bound = model.bind(variables)
    method, dim = model.slim, model.embed_dim
    tokens = bound._embed(images, False, None)
    x, p = np.asarray(tokens.x, np.float64), tokens.prefix
    order, left, running = np.arange(x.shape[1] - p)[None].repeat(len(x), 0), x.shape[1] - p, None
    pick = lambda a, index: np.take_along_axis(a, index.reshape(index.shape + (1,) * (a.ndim - 2)), 1)
    standard = lambda y: (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-6)
    norm = lambda y, w: standard(y) * w["scale"] + w["bias"]
    lin = lambda y, w: y @ np.asarray(w["kernel"], np.float64) + w["bias"]
    for layer, block in enumerate((variables["params"][f"blocks_{i}"] for i in range(model.depth)), start=1):
        if layer in method.locations:
            index = np.argsort(-running, axis=1, kind="stable")
            order, running = pick(order, index), pick(running, index)
            x = np.concatenate([x[:, :p], pick(x[:, p:], index)], 1)
            left = int(bound.geometry.num_patches * method.keep_rate)
        waiting, weights = x[:, p + left :], running[:, left:] if running is not None else None
        slow = x[:, : p + left]
        if waiting.shape[1]:
            share = weights / weights.sum(1, keepdims=True)
            slow = np.concatenate([slow, np.einsum("bn,bnd->bd", share, waiting)[:, None]], 1)
        b, m, h = slow.shape[0], slow.shape[1], model.num_heads
        qkv = lin(norm(slow, block["norm1"]), block["attn"]["qkv"]).reshape(b, m, 3, h, dim // h)
        q, k, v = qkv.transpose(2, 0, 3, 1, 4)
        a = np.asarray(jax.nn.softmax(q @ k.swapaxes(-1, -2) / (dim // h) ** 0.5))
        first = lin((a @ v).swapaxes(1, 2).reshape(b, m, dim), block["attn"]["proj"])
        hidden = jax.nn.gelu(lin(norm(slow + first, block["norm2"]), block["mlp"]["fc1"]), approximate=False)
        second = lin(np.asarray(hidden), block["mlp"]["fc2"])
        new, alpha = a[:, :, 0, p : p + left].sum(1), 0.5 if layer >= method.locations[0] else 1.0
        if running is None:
            running = new
        else:
            running = np.concatenate([(1 - alpha) * running[:, :left] + alpha * new, running[:, left:]], 1)
        moved = slow + first + second
        if waiting.shape[1]:
            waiting = waiting + first[:, -1:] + second[:, -1:]
        x = np.concatenate([moved[:, : p + left], waiting], 1)
    return lin(norm(x[:, p:].mean(1), variables["params"]["norm"]), variables["params"]["head"])


def test_evo_fast_path_is_the_papers():
    family = "registers"
    model, variables = built(family, method="evo", keep_rate=0.4, locations=(2, 4), depth=5)
    logits, aux = run(model, variables, IMAGES)
    assert aux.token_counts == (16, 7, 7, 7, 7)
    close(logits, evo_reference(model, variables, IMAGES))
    layerwise, _ = built(family, method="evo", keep_rate=0.4, locations=(2, 4), depth=5, stage_wise=False)
    assert len(run(layerwise, variables, IMAGES)[1].kept) == 4


def test_sit_algebra_by_hand():
    patches = jnp.array([[[1.0, 2.0], [3.0, 4.0]]])
    np.testing.assert_allclose(sit.aggregate(jnp.array([[[0.25], [0.75]]]), patches), [[[2.5, 3.5]]])
    close(sit.token_recovery([patches, patches], [patches + 2, patches]), np.array(2.0), 1e-6)


def test_ia_red2_algebra_by_hand():
    right = jnp.array([True, False])
    np.testing.assert_allclose(ia_red2.reward(right, jnp.array([[0.5, 0.5], [1.0, 0.0]]), 2.0), [[0.75, -2], [0, -2]])
    ones = jnp.ones(3)
    np.testing.assert_allclose(ia_red2.leave_one_out(jnp.array([1.0, 2.0, 6.0]), ones), [-3, -1.5, 4.5])
    np.testing.assert_allclose(ia_red2.leave_one_out(jnp.array([1.0, 2.0, 6.0]), ones.at[2].set(0)), [-1, 1, 0])
    np.testing.assert_allclose(ia_red2.leave_one_out(jnp.array([5.0]), jnp.ones(1)), [5])
    assert [stage["active_groups"] for stage in ia_red2.curriculum((1, 5, 9), 12)] == [1, 1, 2, 2, 3, 3]


def test_ia_red2_policy_gradient_raises_the_probability_of_rewarded_choices():
    model, _ = built(method="ia_red2", locations=(2,))
    keep = jnp.full((2, 16), 0.5)
    chosen = jnp.zeros((2, 16)).at[:, :8].set(1.0)
    logits = 5.0 * jax.nn.one_hot(jnp.array([1, 0]), 5)  # the first image is right, the second wrong

    def policy(keep):
        aux = slim.Aux((16,) * 3, None, None, keep, {"keep_probabilities": (keep,), "decisions": (chosen,)})
        return model.losses(logits, aux, slim.Targets(LABELS[:2]))["policy"].mean()

    slope = jax.grad(policy)(keep)
    assert (slope[0, :8] < 0).all() and (slope[0, 8:] > 0).all()  # descent keeps what was kept and drops the rest
    assert (slope[1, :8] > 0).all() and (slope[1, 8:] < 0).all()


# Options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("avit", dict(gate_scale="x"), "gate_scale='x'"),
        ("avit", dict(gate_scale=-1.0), "gate_scale=-1.0"),
        ("avit", dict(budgets=(16, 17, 1)), "must not grow"),
        ("avit", dict(budgets=(16, 8)), "2 entries for 3 layers"),
        ("avit", dict(prior_center=0), "prior_center=0"),
        ("avit", dict(layer_score="mean"), "layer_score"),
        ("evo", dict(locations=(1, 2)), "layer 1"),
        ("evo", dict(), r"1\.\.3"),
        ("evo", dict(locations=(2,), tradeoff=1.5), "tradeoff=1.5"),
        ("evo", dict(locations=(2,), tradeoff=(0.5,)), "1 values for 3 layers"),
        ("evo", dict(locations=(2,), representative=1), "representative=1"),
        ("evo", dict(locations=(2,), class_token=False, global_pool="avg"), "no class token"),
        ("sit", dict(stage_blocks=(2, 2)), "4 layers in all"),
        ("sit", dict(stage_blocks=(3,)), "stage_blocks"),
        ("sit", dict(locations=(2, 5)), r"1\.\.3"),
        ("sit", dict(locations=(2,), keep_rate=0.0), "keep_rate=0.0"),
        ("ia_red2", dict(tau=-1), "tau=-1"),
        ("ia_red2", dict(active_groups=4), "active_groups=4"),
        ("ia_red2", dict(initial_keep=1.0), "initial_keep=1.0"),
        ("ia_red2", dict(keep_rate=(0.5, 0.5)), "2 rates for 3 locations"),
    ],
)
def test_bad_options_are_refused_at_construction(method, options, message):
    with pytest.raises(SlimError, match=message) as error:
        slim.create_model("vit", method=method, **TINY, **options)
    assert "\n" not in str(error.value)


def test_a_teacher_of_another_depth_is_refused():
    student, variables = built(method="sit", locations=(1, 2))
    with pytest.raises(SlimError, match="depth"):
        student.slim.check_teacher(Geometry(grid=(4, 4), depth=4, dim=24, heads=2))
    student.slim.check_teacher(Geometry(grid=(4, 4), depth=3, dim=24, heads=6))
    aux = jax.eval_shape(lambda: student.apply(variables, IMAGES, train=True, return_aux=True, rngs=KEY))[1]
    tokens = tuple(jnp.zeros((3, 16, 24)) for _ in range(4))
    teacher = slim.Aux((16,) * 4, None, None, IMAGES, {"tokens": tokens})
    with pytest.raises(SlimError, match="4 layers"):
        student.losses(LABELS, aux, slim.Targets(LABELS, teacher=(LABELS, teacher)))
    with pytest.raises(SlimError, match="record_tokens"):
        student.losses(LABELS, aux, slim.Targets(LABELS, teacher=(LABELS, teacher.replace(taps={}))))


def test_flops_count_the_methods():
    extra = lambda method, **options: slim.create_model("vit", method=method, **TINY, **options).slim.extra_flops()
    assert extra("avit", budgets=(16, 8, 4)) == {1: 17 * 24, 2: 9 * 24, 3: 5 * 24}
    assert extra("evo", locations=(2, 3)) == {1: 17 * 24, 2: 10 * 24 + 8 * 24, 3: 8 * 24}
    assert extra("evo", locations=(2,), representative=False) == {1: 17 * 24}
    assert extra("sit", locations=(2,)) == {2: 16 * (24 * 12 + 12 * 8 + 8 * 24)}
    assert extra("ia_red2", locations=(2,), keep_rate=0.5) == {2: 2 * 24 * 24 + 16 * 2 * 24}
    assert extra("ia_red2", locations=(2,), keep_rate=1.0) == {}


# Properties ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_inference(method, family):
    options = METHODS[method] | (dict(budgets=(16, 9, 4)) if method == "avit" and family != "vit" else {})
    model, variables = built(family, method=method, **options)
    traces = []

    @jax.jit
    def infer(variables, images):
        traces.append(images.shape)
        return model.apply(variables, images, return_aux=True, record_tokens=True)

    logits, aux = infer(variables, IMAGES)
    assert aux.token_counts == model.slim.plan.token_counts
    made_up = method == "evo"
    for layer, tokens in enumerate(aux.taps["tokens"]):
        expected = model.slim.plan.mlp[layer]
        after = {"sit": model.slim.plan.mlp[min(layer + 1, 2)], "evo": 16}.get(method, expected)
        assert tokens.shape == (3, after if layer or method == "sit" else expected, 24)
    assert aux.features.shape[1] == model.geometry.prefix_tokens + (aux.token_counts[-1] if method not in
                                                                    ("avit", "evo") else 16)  # fmt: skip
    assert aux.scores.shape == (3, 16)
    if model.slim.merges:
        assert aux.kept is None
        np.testing.assert_allclose(aux.scores.sum(1), 1.0, rtol=1e-5)
    else:
        for kept in aux.kept:
            kept = np.asarray(kept)[:, : kept.shape[1] - made_up]
            assert all(len(set(row)) == len(row) and set(row) <= set(range(16)) for row in kept)
    with jax.transfer_guard("disallow"):
        again, _ = infer(variables, IMAGES)
    assert len(traces) == 1
    np.testing.assert_array_equal(again, logits)
    close(infer(variables, IMAGES[1:2])[0][0], np.asarray(logits[1]), 1e-5)


@pytest.mark.parametrize(("method", "family"), [*((m, "vit") for m in METHODS), ("evo", "deit_distilled"),
                                                ("ia_red2", "registers")])  # fmt: skip
def test_every_trainable_parameter_gets_a_gradient(method, family):
    model, variables = built(family, method=method, **METHODS[method])
    dense, _ = built(family)
    backbone = {"params": {k: v for k, v in variables["params"].items() if k != "slim"}}
    labels = LABELS
    if method == "ia_red2":  # without a right prediction no choice is better than another
        labels = LABELS.at[0].set(jax.nn.one_hot(run(model, variables, IMAGES, train=True, rngs=KEY)[0][0].argmax(), 5))

    @jax.jit
    def gradient(params):
        def total(params):
            logits, aux = model.apply({"params": params}, IMAGES, train=True, return_aux=True, rngs=KEY)
            teacher = None
            if model.slim.needs_teacher:
                teacher = dense.apply(backbone, IMAGES, return_aux=True, record_tokens=True)
            losses = model.losses(logits, aux, slim.Targets(labels, teacher=teacher))
            assert set(losses) == set(model.loss_weights())
            return sum(model.loss_weights()[name] * value.mean() for name, value in losses.items())

        return jax.grad(total)(params)

    for path, slope in jax.tree_util.tree_leaves_with_path(gradient(variables["params"])):
        name = jax.tree_util.keystr(path)
        assert jnp.isfinite(slope).all(), name
        if family == "registers" or method != "evo" or "reg_token" not in name:
            assert jnp.abs(slope).max() > 0, name


@pytest.mark.parametrize("method", METHODS)
def test_bfloat16(method):
    model, variables = built(method=method, **METHODS[method])
    half = slim.create_model("vit", method=method, dtype="bfloat16", **TINY, **METHODS[method])
    for options in (dict(), dict(train=True, rngs=KEY)):
        logits, aux = run(half, variables, IMAGES, **options)
        assert logits.dtype == jnp.float32 and jnp.isfinite(logits).all()
        assert jnp.isfinite(aux.features.astype(jnp.float32)).all()


def test_keeping_everything():
    logits = lambda model, params: np.asarray(run(model, {"params": params}, IMAGES)[0])
    dense, weights = built()
    weights = weights["params"]
    expected = logits(dense, weights)
    model, variables = built(method="ia_red2", keep_rate=1.0)
    close(logits(model, {**weights, "slim": variables["params"]["slim"]}), expected, 1e-5)
    close(logits(built(method="avit", gate_center=1000.0)[0], weights), expected, 1e-5)
    # Evo-ViT pools the patches: with all of them it is the dense model with that pooling
    pooled = slim.create_model("vit", global_pool="avg", **TINY)
    expected = logits(pooled, {("fc_norm" if name == "norm" else name): value for name, value in weights.items()})
    model, variables = built(method="evo", keep_rate=1.0, locations=(2,))
    close(logits(model, {**weights, "slim": variables["params"]["slim"]}), expected, 1e-5)
    assert [slim.methods.METHODS[m].keep_all_is_dense for m in METHODS] == [False, False, False, True]


def test_padding_rows_and_imposed_scores():
    model, variables = built(method="ia_red2", **METHODS["ia_red2"])
    _, aux = run(model, variables, IMAGES, scores=jnp.tile(jnp.arange(16.0), (3, 1)))
    np.testing.assert_array_equal(aux.kept[0], np.tile(np.arange(15, 3, -1), (3, 1)))
    taps = {"keep_probabilities": (jnp.full((2, 16), 0.3),), "decisions": (jnp.ones((2, 16)),)}
    part = slim.Aux((16,) * 3, None, None, IMAGES, taps)
    one = part.replace(taps={name: (value[0][:1],) for name, value in taps.items()})
    padded = model.losses(LABELS[:2], part, slim.Targets(LABELS[:2], jnp.asarray([1.0, 0.0])))
    alone = model.losses(LABELS[:1], one, slim.Targets(LABELS[:1]))
    for name in ("policy", "entropy"):
        close(padded[name][:1], np.asarray(alone[name]), 1e-6)


def test_sit_recovery_learns_faster():
    model, variables = built(method="sit", locations=(1, 2))
    rate = SimpleNamespace(backbone=1e-3, method=0.0)
    stage = SimpleNamespace(lr=rate, layer_decay=1.0, lr_scale=())
    arguments = (optim.layer_names(variables["params"]), model.slim.learning_rate_scale, model.slim.parameter_rates)
    factors = optim.flat(optim.multipliers(variables["params"], stage, *arguments))
    assert {path.split("/")[1] for path, factor in factors.items() if factor == 5.0} == {"rtsm_0", "rtsm_1", "rtsm_2"}
    assert set(factors.values()) == {1.0, 5.0}
    stage.lr_scale = ((r"slim/rtsm_0/.*", 2.0),)  # the config has the last word
    assert optim.flat(optim.multipliers(variables["params"], stage, *arguments))["slim/rtsm_0/norm1/scale"] == 2.0


def test_a_distilled_sit_trains_both_heads():
    model, variables = built("deit_distilled", method="sit", locations=(1, 2))
    logits, aux = run(model, variables, IMAGES, train=True, rngs=KEY)
    np.testing.assert_allclose(logits, (aux.taps["head_logits"] + aux.taps["dist_logits"]) / 2, rtol=1e-6)
    targets = slim.Targets(LABELS)
    losses = model.losses(logits, aux, targets)
    assert set(losses) == {"classification"}
    np.testing.assert_allclose(losses["classification"], loss_functions.classification(logits, aux.taps, targets))
