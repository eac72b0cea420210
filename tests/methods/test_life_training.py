"""Life regression's training options beyond the paper: hard masks, kept patches alone, sampled budgets."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import slimvit_jax as slim

OPTIONS = dict(
    img_size=12, patch_size=3, embed_dim=16, depth=4, num_heads=2, num_classes=5, locations=(1, 2, 3), keep_rate=0.6
)


def tiny(**options):
    return slim.create_model("vit", method="life_regression", **{**OPTIONS, **options})


@pytest.fixture(scope="module")
def images():
    return jax.random.normal(jax.random.key(1), (3, 12, 12, 3))


def variables_of(model, images):
    return jax.jit(model.init)(jax.random.key(0), images)


def train(model, variables, images, seed=0):
    run = lambda v: model.apply(v, images, train=True, return_aux=True, rngs={"dropout": jax.random.key(seed)})
    return jax.jit(run)(variables)


@pytest.mark.parametrize("class_token", [True, False])
def test_hard_training_computes_what_inference_computes(images, class_token):
    pool = {} if class_token else {"class_token": False, "global_pool": "avg"}
    model = tiny(hard=True, predictor_scale=1.0, **pool)
    variables = variables_of(model, images)
    logits, _ = train(model, variables, images)
    np.testing.assert_allclose(logits, jax.jit(model.apply)(variables, images), atol=2e-5)
    soft, _ = train(tiny(predictor_scale=1.0, **pool), variables, images)
    assert np.abs(soft - logits).max() > 1e-3  # what the option is for


def test_hard_training_has_a_gradient_into_the_predictor(images):
    model = tiny(hard=True, predictor_scale=1.0)
    variables = variables_of(model, images)
    loss = lambda params: jnp.square(train(model, {"params": params}, images)[0]).sum()
    gradient = jax.grad(loss)(variables["params"])["slim"]["life_predictor"]["weight"]
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0


@pytest.mark.parametrize("hard", [False, True])
def test_one_sampled_rate_is_that_keep_rate(images, hard):
    model = tiny(hard=hard)
    variables = variables_of(model, images)
    sampled, _ = train(tiny(hard=hard, keep_rate=0.9, sampled_rates=(0.6,)), variables, images)
    np.testing.assert_allclose(sampled, train(model, variables, images)[0], atol=1e-5)


def test_every_image_draws_its_own_rate(images):
    model = tiny(sampled_rates=(0.9, 0.3))
    variables = variables_of(model, images)
    batch = jnp.repeat(images[:1], 16, axis=0)
    logits, aux = train(model, variables, batch)
    means = np.asarray(aux.scores.mean(1))
    expected = [slim.ops.life.life_moments(tiny(keep_rate=rate).slim.counts)[0] for rate in (0.9, 0.3)]
    assert {int(np.argmin(np.abs(np.subtract(expected, mean)))) for mean in means} == {0, 1}
    for mean, row in zip(means, logits, strict=True):  # rows of one rate are alike, whatever their place
        np.testing.assert_allclose(row, logits[np.argmin(np.abs(means - mean))], atol=1e-5)
    # inference knows nothing of it
    np.testing.assert_array_equal(model.apply(variables, images), tiny().apply(variables, images))


def hard_model(class_token=True, **options):
    pool = {} if class_token else {"class_token": False, "global_pool": "avg"}
    return tiny(predictor_scale=1.0, hard=True, **pool, **options)


@functools.cache
def weights(class_token=True):
    return variables_of(hard_model(class_token), jnp.zeros((1, 12, 12, 3)))["params"]


@functools.cache
def learned(**options):
    """(logits, aux, gradient) of a training step's loss."""
    model, params = hard_model(**options), weights(options.get("class_token", True))
    images = jax.random.normal(jax.random.key(1), (3, 12, 12, 3))

    def loss(params):
        rngs = {"dropout": jax.random.key(2)}
        logits, aux = model.apply({"params": params}, images, train=True, return_aux=True, rngs=rngs)
        return jnp.square(logits).sum(), (logits, aux)

    (_, (logits, aux)), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    return logits, aux, gradient


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"class_token": False, "squeeze": "mean", "sampled_dropped": 2},
        {"squeeze": True, "sampled_dropped": 1, "rejoin": 4, "locations": (1, 2)},
    ],
)
def test_training_on_the_kept_computes_what_inference_computes(images, options):
    logits, aux, gradient = learned(train_tokens="kept", **options)
    sampled = options.get("sampled_dropped", 0)
    counts = [16, 10, 6, 16 if "rejoin" in options else 4]
    assert aux.token_counts == tuple(n if n == 16 else n + sampled for n in counts)
    assert [index.shape[1] for index in aux.kept] == [n for n in (10, 6, 4) if n in counts]
    if "rejoin" not in options:  # those that were sampled rejoin as they are by then
        variables = {"params": weights(options.get("class_token", True))}
        inference = jax.jit(hard_model(train_tokens="kept", **options).apply)(variables, images)
        np.testing.assert_allclose(logits, inference, atol=2e-5)
        assert aux.features.shape[1] == (4 if "class_token" in options else 5)
    scores = gradient["slim"]["life_predictor"]["weight"]
    assert np.isfinite(scores).all() and np.abs(scores).max() > 1e-5


@pytest.mark.parametrize(
    ("sampled", "options"),
    [(0, {"keep_rate": 1.0}), (99, {"locations": (2,), "squeeze": True})],
)
def test_with_nothing_left_out_the_kept_learn_as_under_masks(sampled, options):
    """All are kept, or all that a single drop drops go on: every gradient is that of the masks."""
    kept, masked = learned(train_tokens="kept", sampled_dropped=sampled, **options), learned(**options)
    np.testing.assert_allclose(kept[0], masked[0], atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), kept[2], masked[2])


def test_without_the_dropped_later_layers_learn_as_under_masks():
    """Patches of weight 0 teach the lives, and through them what is in front of the predictor, and nobody else."""
    kept, masked = learned(train_tokens="kept")[2], learned()[2]
    for name in ("blocks_1", "blocks_3", "head"):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), kept[name], masked[name])
    lives, all_lives = (gradient["slim"]["life_predictor"]["weight"] for gradient in (kept, masked))
    assert np.abs(lives - all_lives).max() > 1e-3 * np.abs(all_lives).max()


def test_token_labels_are_for_the_kept():
    model = slim.create_model(
        "lvvit", "life_regression", p_emb="none", token_labelling=True, hard=True, train_tokens="kept",
        sampled_dropped=3, **OPTIONS,
    )  # fmt: skip
    images = jax.ShapeDtypeStruct((2, 12, 12, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    rngs = {"dropout": jax.random.key(0)}
    run = lambda v, x: model.apply(v, x, train=True, return_aux=True, rngs=rngs)
    _, aux = jax.eval_shape(run, variables, images)
    assert aux.taps["token_logits"].shape == (2, 4, 5) and aux.token_counts == (16, 13, 9, 6)  # of 2 dropped, 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sampled_rates": (0.7, 1.2)}, "1.2"),
        ({"sampled_rates": (0.7,), "budgets": (16, 8, 4, 4)}, "sampled_rates"),
        ({"train_tokens": "kept"}, "hard=True"),
        ({"train_tokens": "kept", "hard": True, "sampled_rates": (0.7,)}, "no sampled_rates"),
        ({"hard": True, "sampled_dropped": 2}, "train_tokens='kept'"),
    ],
)
def test_bad_options_are_named(options, words):
    with pytest.raises(slim.SlimError, match=words):
        tiny(**options)
