"""Life regression's training options beyond the paper: hard masks and sampled budgets."""

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
    np.testing.assert_allclose(logits, model.apply(variables, images), atol=2e-5)
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


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sampled_rates": (0.7, 1.2)}, "1.2"),
        ({"sampled_rates": (0.7,), "budgets": (16, 8, 4, 4)}, "sampled_rates"),
    ],
)
def test_bad_options_are_named(options, words):
    with pytest.raises(slim.SlimError, match=words):
        tiny(**options)
