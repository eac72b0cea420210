"""Life regression: the algebra on small examples, the golden values, and the properties that give it its meaning."""

import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import slimvit_jax as slim
from slimvit_jax.ops import life

GOLDEN = Path(__file__).parents[1] / "goldens" / "life_regression.npz"
TINY = dict(img_size=12, patch_size=2, embed_dim=24, depth=6, num_heads=2, num_classes=5)
LOCATIONS = (2, 4, 5)


def tiny(method="life_regression", **options):
    if method == "life_regression" and "budgets" not in options:
        options = {"locations": LOCATIONS, **options}
    return slim.create_model("vit", method=method, **{**TINY, **options})


@pytest.fixture(scope="module")
def images():
    return jax.random.normal(jax.random.key(1), (3, 12, 12, 3))


@pytest.fixture(scope="module")
def variables(images):
    # A large W, so that lives differ clearly from patch to patch.
    model = tiny(predictor_scale=1.0)
    return jax.jit(model.init)(jax.random.key(0), images)


def apply(model, variables, images, **keywords):
    return jax.jit(lambda v, x: model.apply(v, x, **keywords))(variables, images)


# The algebra ---------------------------------------------------------------------------------------------------------


def test_moments_of_the_budgets():
    mean, std = life.life_moments((196,) * 4 + (138,) * 3 + (97,) * 3 + (68,) * 2)
    assert (round(mean, 4), round(std, 4)) == (8.2908, 3.3170)
    # Two patches die after layer 1, two live to layer 3: mean 2, deviations all 1.
    assert life.life_moments((4, 2, 2)) == (2.0, 1.0)
    assert life.life_moments((4, 4, 4)) == (3.0, 0.0)


def test_lives_have_the_target_moments_and_keep_the_order():
    scores = jax.random.normal(jax.random.key(0), (2, 50)) * 7 + 3
    lives = life.normalise_lives(scores, 8.0, 3.0)
    np.testing.assert_allclose(lives.mean(1), 8, atol=1e-5)
    np.testing.assert_allclose(lives.std(1), 3, atol=1e-5)
    assert (jnp.argsort(lives) == jnp.argsort(scores)).all()


@pytest.mark.parametrize("value", [0.0, 5.0, -1e6])
def test_tied_scores_give_finite_lives_and_gradients(value):
    scores = jnp.full((2, 9), value)
    lives, pullback = jax.vjp(lambda s: life.normalise_lives(s, 8.0, 3.0), scores)
    np.testing.assert_allclose(lives, 8.0, atol=1e-5)
    gradient = pullback(jnp.arange(18.0).reshape(2, 9))[0]
    assert jnp.isfinite(gradient).all() and jnp.abs(gradient).max() < 1e3


def test_bilinear_score_is_the_full_product():
    key = jax.random.split(jax.random.key(0), 3)
    anchor, patches = jax.random.normal(key[0], (2, 5)), jax.random.normal(key[1], (2, 7, 5))
    weight = jax.random.normal(key[2], (5, 5))
    expected = [[a @ weight @ p for p in ps] for a, ps in zip(anchor, patches, strict=True)]
    np.testing.assert_allclose(life.bilinear_scores(anchor, patches, weight), expected, rtol=1e-5, atol=1e-5)


def test_weight_curve_falls_from_one_to_zero_at_the_life():
    beta = jnp.exp(jnp.stack([life.log_weight(jnp.float32(5), t, 1.5) for t in range(1, 13)]))
    assert beta[4] == pytest.approx(0.5) and (jnp.diff(beta) < 0).all()  # half at t = tau, falling
    assert beta[0] > 0.99 and beta[-1] < 0.01
    hard = jnp.arange(1, 13) <= 5
    np.testing.assert_allclose(jnp.exp(life.log_weight(jnp.float32(5.5), jnp.arange(1, 13), 200.0)), hard, atol=1e-6)


# Golden values -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as file:
        data = dict(file)
    meta = json.loads(str(data["meta"]))
    names = ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "num_classes")
    options = {name: meta[name] for name in ("keep_rate", "temperature", "t_base")}
    model = slim.create_model(
        "vit", method="life_regression", locations=tuple(meta["locations"]), **options, **{n: meta[n] for n in names}
    )
    state = {name[3:]: value for name, value in data.items() if name.startswith("sd/")}
    return data, model, slim.from_torch(model, state), jnp.asarray(data["images"].transpose(0, 2, 3, 1), jnp.float32)


def test_golden_inference(golden):
    data, model, variables, images = golden
    logits, aux = apply(model, variables, images, return_aux=True)
    np.testing.assert_allclose(logits, data["out/logits_hard"], atol=1e-4)
    np.testing.assert_allclose(aux.scores, data["out/lives"], atol=1e-4)
    assert len(aux.kept) == 3
    for k, kept in enumerate(aux.kept):
        np.testing.assert_array_equal(kept, data[f"out/kept_{k}"])
    assert aux.token_counts == (196,) * 4 + (138,) * 3 + (97,) * 3 + (68,) * 2


def test_golden_training_loss_and_gradients(golden):
    data, model, variables, images = golden
    labels = jax.nn.one_hot(data["labels"], 10)

    def loss(params):
        logits, aux = model.apply({"params": params}, images, train=True, return_aux=True)
        return model.losses(logits, aux, slim.Targets(labels))["classification"].mean(), logits

    (value, logits), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])
    np.testing.assert_allclose(logits, data["out/logits_soft"], atol=1e-4)
    assert value == pytest.approx(float(data["out/loss_soft"]), abs=1e-5)
    named = slim.to_torch(model, {"params": gradient})
    for name in [key[len("out/grad/") :] for key in data if key.startswith("out/grad/")]:
        np.testing.assert_allclose(named[name], data[f"out/grad/{name}"], atol=1e-5, err_msg=name)


# Properties ----------------------------------------------------------------------------------------------------------


def test_keep_rate_one_is_the_dense_model(images, variables):
    dense = {"params": {k: v for k, v in variables["params"].items() if k != "slim"}}
    expected = apply(tiny(method=None), dense, images)
    np.testing.assert_array_equal(apply(tiny(keep_rate=1.0), variables, images), expected)


@pytest.mark.parametrize("keep_rate", [0.9, 0.7, 0.5, (0.8, 0.5, 0.3)])
@pytest.mark.parametrize("t_base", [None, 1])
def test_slicing_the_sorted_order_is_top_k_by_life_at_every_budget(images, variables, keep_rate, t_base):
    model = tiny(keep_rate=keep_rate, t_base=t_base)
    _, aux = apply(model, variables, images, return_aux=True)
    drops = sorted({n for n in model.slim.counts if n < 36}, reverse=True)
    assert [kept.shape[1] for kept in aux.kept] == drops
    for kept in aux.kept:
        order = np.argsort(-np.asarray(aux.scores), axis=1, kind="stable")[:, : kept.shape[1]]
        np.testing.assert_array_equal(kept, order)


@pytest.mark.parametrize("pool", [{}, {"class_token": False, "global_pool": "avg"}, {"reg_tokens": 2}])
def test_soft_weights_with_a_large_temperature_are_the_hard_drop(images, pool):
    """Budgets where the lives fall on either side of the layers exactly as the static counts demand."""
    model = tiny(keep_rate=0.5, **pool)
    variables = jax.jit(model.init)(jax.random.key(0), images)
    # Imposed lives: normalising them leaves them as they are when they already have the target moments.
    deaths = np.repeat(np.arange(1, 7), -np.diff([*model.slim.counts, 0]))
    lives = np.stack([np.random.default_rng(i).permutation(deaths) for i in range(3)]).astype(np.float32)
    hard = apply(model, variables, images, scores=jnp.asarray(lives))
    # A patch of life t is computed in layer t: half a layer more makes beta(t) = 1 there and 0 in the next one.
    soft_model = tiny(keep_rate=0.5, temperature=400.0, **pool)
    shifted = lambda scores, mean, std: scores + 0.5
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(life, "normalise_lives", shifted)
        soft = apply(soft_model, variables, images, scores=jnp.asarray(lives), train=True)
    np.testing.assert_allclose(soft, hard, atol=1e-5)


def test_one_set_of_variables_serves_every_budget(images, variables):
    for options in ({"keep_rate": 0.3}, {"budgets": (36, 36, 30, 20, 10, 1)}, {"budgets": (36,) * 6}):
        model = tiny(**options)
        shapes = jax.eval_shape(model.init, jax.random.key(0), images)
        assert jax.tree.structure(shapes) == jax.tree.structure(variables)
        logits, aux = apply(model, variables, images, return_aux=True)
        assert aux.token_counts == model.slim.counts and jnp.isfinite(logits).all()


def test_imposed_lives_replace_the_predicted_ones(images, variables):
    lives = jnp.tile(jnp.arange(36.0), (3, 1))
    _, aux = apply(tiny(keep_rate=0.5), variables, images, scores=lives, return_aux=True)
    np.testing.assert_array_equal(aux.kept[0], np.tile(np.arange(35, 17, -1), (3, 1)))
    with pytest.raises(slim.SlimError, match="one per patch"):
        apply(tiny(), variables, images, scores=lives[:, :5])


def test_a_constant_image_gives_finite_outputs_and_gradients(variables):
    flat = jnp.zeros((2, 12, 12, 3))
    model = tiny(keep_rate=0.5)
    # Position embeddings of zero: all patches alike, all lives tied.
    params = {**variables["params"], "pos_embed": jnp.zeros_like(variables["params"]["pos_embed"])}

    def loss(params):
        logits, aux = model.apply({"params": params}, flat, train=True, return_aux=True)
        return logits.sum(), aux.scores

    (_, lives), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    assert jnp.isfinite(lives).all()
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    _, aux = apply(model, {"params": params}, flat, return_aux=True)
    np.testing.assert_array_equal(aux.kept[0].shape, (2, 18))


def test_stop_gradient_cuts_the_way_through_the_lives(images, variables):
    def gradient(**options):
        model = tiny(**options)
        value = lambda params: model.apply({"params": params}, images, train=True).var()
        return jax.jit(jax.grad(value))(variables["params"])

    full, cut = gradient(), gradient(stop_gradient=True)
    early = lambda tree: tree["blocks_0"]["mlp"]["fc1"]["kernel"]
    assert jnp.abs(early(full) - early(cut)).max() > 1e-7
    np.testing.assert_allclose(full["head"]["kernel"], cut["head"]["kernel"], rtol=1e-5, atol=1e-7)


def test_literal_class_weight_is_the_papers_sigmoid(images, variables):
    plain = apply(tiny(), variables, images, train=True)
    literal = apply(tiny(literal_class_weight=True), variables, images, train=True)
    assert 0 < float(jnp.abs(plain - literal).max())  # sigmoid(U (T - T)) = 1/2 in the last layer


def test_distilled_and_register_prefix_tokens_are_never_dropped(images):
    for name, options in (("deit_distilled", {}), ("vit", {"reg_tokens": 3})):
        model = slim.create_model(name, "life_regression", locations=LOCATIONS, keep_rate=0.5, **TINY, **options)
        variables = jax.jit(model.init)(jax.random.key(0), images)
        _, aux = apply(model, variables, images, return_aux=True)
        assert aux.features.shape == (3, model.geometry.prefix_tokens + model.slim.counts[-1], 24)


def test_flops_follow_the_plan():
    """Table III of the paper, with the paper's own count of the predictor; ours costs next to nothing."""
    for keep_rate, giga in ((0.9, 4.1), (0.8, 3.6), (0.7, 3.2)):
        model = slim.create_model("deit_small_patch16_224", "life_regression", keep_rate=keep_rate)
        assert round(slim.flops(model, paper_predictor=True).total / 1e9, 1) == giga
        report = slim.flops(model)
        assert report.method == 384 * 384 + 196 * 384 < 0.0001 * report.total
        assert sum(report.per_layer) + report.embed + report.head == report.total
    assert round(slim.flops(slim.create_model("deit_small_patch16_224")).total / 1e9, 1) == 4.6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep_rate": 1.5}, r"keep_rate=1.5 must lie in \(0, 1\]"),
        ({"locations": (2, 9)}, r"must lie in 1\.\.6"),
        ({"t_base": 4}, "dropped before it"),
        ({"t_base": 0}, "t_base=0 must be None or be a whole number of at least 1"),
        ({"temperature": 0.0}, "temperature=0.0 must be a positive number"),
        ({"predictor_init": "zeros"}, "unknown predictor_init 'zeros'"),
        ({"budgets": (36, 40, 36, 36, 36, 36)}, "must not grow"),
        ({"keep_ratio": 0.5}, "unknown option .* did you mean 'keep_rate'"),
    ],
)
def test_bad_options_are_refused_by_name(options, message):
    with pytest.raises(slim.SlimError, match=message) as error:
        tiny(**options)
    assert "\n" not in str(error.value)


def test_class_moments_formula_matches_a_simulation():
    counts = (36, 36, 18, 18, 9, 5)
    deaths = np.repeat(np.arange(1, 7), -np.diff([*counts, 0]))
    mean, std = life.life_moments(counts)
    assert math.isclose(mean, deaths.mean()) and math.isclose(std, deaths.std())
