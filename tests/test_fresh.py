"""A model whose method was never trained says so, once, when it predicts."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

import slimvit_jax as slim
from slimvit_jax.inference.evaluate import Inference

TINY = dict(img_size=8, patch_size=4, embed_dim=8, depth=2, num_heads=2, num_classes=3)
IMAGES = jnp.zeros((1, 8, 8, 3))


def model_and_state(method="life_regression", **options):
    model = slim.create_model("vit", method=method, **{"locations": (1,)} | options, **TINY)
    dense = slim.create_model("vit", **TINY)
    return model, slim.to_torch(dense, dense.init(jax.random.key(0), IMAGES))


def predict(how, model, variables):
    return model.apply(variables, IMAGES) if how == "apply" else Inference(model, variables)(IMAGES)


@pytest.mark.parametrize("how", ["apply", "Inference"])
@pytest.mark.parametrize("made", ["loaded", "initialised"])
def test_fresh_parameters_are_said_once(how, made, caplog):
    model, state = model_and_state()
    if made == "loaded":
        variables = slim.from_torch(model, state, init_missing=("life_predictor",))
    else:
        variables = model.init(jax.random.key(0), IMAGES)
    assert not caplog.records  # not before it predicts: training may come first
    predict(how, model, variables)
    predict(how, model, variables)
    assert [record.getMessage() for record in caplog.records] == [
        "method 'life_regression' predicts with life_predictor as initialised, never trained"
    ]


@pytest.mark.parametrize("how", ["apply", "Inference"])
def test_nothing_is_said_of_trained_or_absent_parameters(how, caplog):
    model, state = model_and_state()
    variables = slim.from_torch(model, state, init_missing=("life_predictor",))
    trained = jax.tree.map(lambda leaf: leaf * 1.01, variables)
    predict(how, model, trained)
    predict(how, *((dense := slim.create_model("vit", **TINY)), dense.init(jax.random.key(0), IMAGES)))
    none, state = model_and_state("topk")
    predict(how, none, slim.from_torch(none, state))
    evo, _ = model_and_state("evo", locations=(2,))  # a head that only training reads
    predict(how, evo, evo.init(jax.random.key(0), IMAGES))
    assert not caplog.records


def test_nothing_is_said_in_training(caplog):
    model, _ = model_and_state()
    variables = model.init(jax.random.key(0), IMAGES)
    model.apply(variables, IMAGES, train=True, rngs={"dropout": jax.random.key(0)})
    assert not caplog.records
