"""Every method x {class token, every kind of prefix token} x {train, infer} x {float32, bfloat16}, from the table.

A new method is covered before its author thinks of tests. Both kinds of model are computed in float32, in training and
at inference; bfloat16 is computed on one and traced on the other. Depth 4, 20 patches of a grid that is not square.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import random_variables

import slimvit_jax as slim
from slimvit_jax.methods import METHODS
from slimvit_jax.tokens import Aux

BATCH, CLASSES, DIM, DEPTH, PATCHES = 3, 5, 32, 4, 20
TINY = dict(img_size=(20, 16), patch_size=4, embed_dim=DIM, depth=DEPTH, num_heads=2, num_classes=CLASSES)
FAMILIES = {"vit": ("vit", {}), "prefixes": ("deit_distilled", {"reg_tokens": 3})}
#: Where the defaults are made for larger models: everything else is derived from the fields of the method.
SPECIAL = {
    "avit": {"gate_scale": 1.0, "gate_center": 3.0},
    "cropr": {"pruning_rate": 4},
    "dtem": {"r": 3, "keep_rate": None},
    "mctf": {"r": 3},
    "tome": {"r": 3, "keep_rate": None},
}
#: What keeps everything, where that is no keep rate of 1.
KEEP_ALL = {"cropr": {"pruning_rate": 0}, "mctf": {"r": 0}}
#: What the head of a class token never sees: whom the last layer merges.
WITHOUT_GRADIENT = {"dtem": f"slim/metric_layer_{DEPTH - 1}/"}
#: DPC-KNN divides by the sum of the merge weights plus 1e-6, as released: a lone token loses that share.
TOLERANCE = {"dpcknn": 5e-3}
IMAGES = np.random.default_rng(1).normal(size=(BATCH, 20, 16, 3)).astype(np.float32)

methods = pytest.mark.parametrize("method", slim.list_methods())
families = pytest.mark.parametrize("family", FAMILIES)


@functools.cache
def model_of(method, family="vit", dtype="float32", keep_rate=0.5):
    name, backbone = FAMILIES[family]
    options = {}
    if method is not None:
        fields = {field.name for field in dataclasses.fields(METHODS[method])}
        options = {k: v for k, v in dict(keep_rate=keep_rate, locations=(2, 3)).items() if k in fields}
        options |= (SPECIAL if keep_rate != 1.0 else KEEP_ALL).get(method, {})
    return slim.create_model(name, method=method, dtype=dtype, **TINY, **backbone, **options)


@functools.cache
def variables_of(method, family="vit", keep_rate=0.5):
    return random_variables(model_of(method, family, keep_rate=keep_rate))


@functools.cache
def inference(method, family="vit", dtype="float32"):
    model = model_of(method, family, dtype)
    return jax.jit(lambda v, x: model.apply(v, x, return_aux=True))


def teacher_of(model):
    """(logits, aux) as a dense teacher gives them, made up."""
    rng = np.random.default_rng(2)
    made_up = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    aux = Aux(
        token_counts=(PATCHES,) * DEPTH,
        kept=(),
        scores=None,
        features=made_up(BATCH, model.geometry.prefix_tokens + PATCHES, DIM),
        taps={"tokens": tuple(made_up(BATCH, PATCHES, DIM) for _ in range(DEPTH))},
    )
    return made_up(BATCH, CLASSES), aux


@functools.cache
def training(method, family="vit", dtype="float32"):
    """Jitted (params, rest, images) -> ((loss, (losses, logits)), gradients)."""
    model = model_of(method, family, dtype)
    labels = jax.nn.one_hot(jnp.arange(BATCH) % CLASSES, CLASSES)
    teacher = teacher_of(model) if model.slim.needs_teacher else None

    def loss(params, rest, images):
        variables = {"params": params, **rest}
        (logits, aux), _ = model.apply(
            variables,
            images,
            train=True,
            return_aux=True,
            rngs={"dropout": jax.random.key(0)},
            mutable=["batch_stats"],
        )
        losses = model.losses(logits, aux, slim.Targets(labels, teacher=teacher))
        return sum(model.loss_weights()[name] * value.mean() for name, value in losses.items()), (losses, logits)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


@methods
@pytest.mark.parametrize("train", [False, True], ids=["infer", "train"])
@pytest.mark.parametrize(("family", "dtype"), [("vit", "float32"), ("prefixes", "bfloat16")])
def test_shapes_and_budgets(method, family, train, dtype):
    model = model_of(method, family, dtype)
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), variables_of(method, family))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(shapes))

    def apply(variables, images):
        return model.apply(
            variables,
            images,
            train=train,
            return_aux=True,
            rngs={"dropout": jax.random.key(0)},
            mutable=["batch_stats"],
        )

    (logits, aux), _ = jax.eval_shape(apply, shapes, IMAGES)
    plan = model.slim.train_plan if train else model.slim.plan
    assert logits.shape == (BATCH, CLASSES) and logits.dtype == jnp.float32
    assert aux.token_counts == plan.token_counts and len(plan.mlp) == DEPTH
    assert aux.features.dtype == jnp.dtype(dtype) and aux.features.shape[::2] == (BATCH, DIM)
    assert (aux.kept is None) == model.slim.merges
    for kept in aux.kept or ():
        assert kept.shape[0] == BATCH and kept.shape[1] <= PATCHES and kept.dtype == jnp.int32
    if aux.scores is not None:
        assert aux.scores.shape == (BATCH, PATCHES)


@methods
@families
def test_inference(method, family):
    model, variables, apply = model_of(method, family), variables_of(method, family), inference(method, family)
    logits, aux = apply(variables, IMAGES)
    assert np.isfinite(logits).all() and np.isfinite(aux.features).all()
    order = np.asarray([2, 0, 1])
    moved, _ = apply(variables, IMAGES[order])
    np.testing.assert_allclose(moved, logits[order], atol=1e-5)  # neighbours and place in the batch do not matter
    for kept in aux.kept or ():
        for row in np.asarray(kept):
            patches = row[row >= 0]
            assert len(set(patches)) == len(patches) and (patches < PATCHES).all()
    loud = apply(variables, IMAGES * 1000)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(loud))  # no exponential leaves float32
    assert apply._cache_size() == 1  # nothing recompiles from batch to batch
    report, dense = slim.flops(model), slim.flops(model_of(None, family))
    assert len(report.per_layer) == DEPTH and min(report.per_layer) > 0
    if sum(model.slim.plan.mlp) < PATCHES * DEPTH:
        assert report.total - report.method < dense.total


@methods
def test_a_batch_of_one_equals_the_image_inside_a_batch(method):
    model, variables = model_of(method), variables_of(method)
    alone = jax.jit(lambda v, x: model.apply(v, x))(variables, IMAGES[1:2])
    np.testing.assert_allclose(alone[0], inference(method)(variables, IMAGES)[0][1], atol=1e-5)


@methods
@families
def test_gradients(method, family):
    check_gradients(method, family, "float32")


@methods
def test_gradients_in_bfloat16(method):
    check_gradients(method, "vit", "bfloat16")
    logits, _ = inference(method, "vit", "bfloat16")(variables_of(method), IMAGES)
    assert np.isfinite(logits).all()


def check_gradients(method, family, dtype):
    variables, step = dict(variables_of(method, family)), training(method, family, dtype)
    params = variables.pop("params")
    (loss, (losses, logits)), gradients = step(params, variables, IMAGES)
    assert np.isfinite(loss) and np.isfinite(logits).all()
    assert set(losses) == set(model_of(method, family).loss_weights())
    assert all(np.shape(value) == (BATCH,) for value in losses.values())
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        assert gradient.dtype == jnp.float32 and np.isfinite(gradient).all(), name
        if not name.startswith(WITHOUT_GRADIENT.get(method, "-")):
            assert np.abs(gradient).max() > 0, f"{name} gets no gradient"
    (loss, _), gradients = step(params, variables, IMAGES * 1000)
    assert np.isfinite(loss) and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    assert step._cache_size() == 1


@pytest.mark.parametrize("method", [method for method in slim.list_methods() if METHODS[method].keep_all_is_dense])
@families
def test_keeping_all_is_the_dense_model(method, family):
    dense = variables_of(None, family)
    own = variables_of(method, family, 1.0)
    params = {**dense["params"], **({"slim": own["params"]["slim"]} if "slim" in own["params"] else {})}
    model = model_of(method, family, keep_rate=1.0)
    assert model.slim.plan.mlp == (PATCHES,) * DEPTH
    apply = jax.jit(lambda v, x: model.apply(v, x))
    logits, (expected, _) = apply({**own, "params": params}, IMAGES), inference(None, family)(dense, IMAGES)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=TOLERANCE.get(method, 2e-5))
