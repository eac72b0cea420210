"""Rows that only fill up a batch change nothing: a padded batch gives what the batch without them gives."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from golden import random_variables
from test_matrix import SPECIAL

import slimvit_jax as slim
from slimvit_jax import losses
from slimvit_jax.data.mixup import MixupConfig
from slimvit_jax.methods import METHODS
from slimvit_jax.ops import boxes
from slimvit_jax.tokens import Aux
from slimvit_jax.training.step import StepOptions, make_train_step, new_state

REAL, PADDED, CLASSES = 3, 5, 5
#: With stochastic depth and rectangles.
PLAIN = dict(img_size=16, patch_size=4, p_emb="none", embed_dim=16, depth=2, num_heads=2, num_classes=CLASSES)
PLAIN |= dict(drop_path_rate=0.2)
#: With batch norms.
STEM = dict(img_size=64, embed_dim=16, depth=1, num_heads=2, num_classes=CLASSES, distilled=True)
LEVIT = dict(img_size=64, embed_dim=(16, 24), depth=(1, 2), num_heads=(2, 3), key_dim=8, num_classes=CLASSES)
EVO = LEVIT | dict(depth=(2, 2), prune_ratio=((1, 0.5, 0.5, 0.5), (0.5, 0.5)))
#: Losses of batches as a whole, in the forms that are not the default.
CASES = {
    **{method: ("lvvit", {"method": method}) for method in slim.list_methods()},
    "convolutions": ("lvvit", STEM | {"token_labelling": True, "mix_token": True}),
    "dynamicvit, whole batch": ("lvvit", {"method": "dynamicvit", "dynamic": True, "token_loss": "kl"}),
    "levit": ("levit_distilled", LEVIT),
    "evo_levit": ("evo_levit", EVO | {"distilled": True}),
}
#: Where an image's loss depends on other images, so that equal losses do not yet mean equal gradients.
COUPLED = ("avit", "dynamicvit, whole batch", "ia_red2", "convolutions")


def build(name: str):
    family, options = CASES[name]
    cls = METHODS.get(options.get("method"))
    if cls is not None:
        options = PLAIN | options
        fields = cls.__dataclass_fields__
        options |= {k: v for k, v in dict(keep_rate=0.5, locations=(2,)).items() if k in fields}
        options |= SPECIAL.get(cls.method, {})
        options["mix_token"] = not cls.needs_teacher
        options["token_labelling"] = not cls.merges
    return slim.create_model(family, **options)


@functools.cache
def data(size: int):
    """(images, labels, mask) of the padded batch; the last rows would spoil everything if they counted."""
    random = np.random.default_rng(0)
    images = random.normal(size=(PADDED, size, size, 3)).astype(np.float32)
    images[REAL:] = 3 * images[REAL:] + 5
    labels = jax.nn.one_hot(jnp.asarray([1, 4, 2, -1, 0]), CLASSES)
    return jnp.asarray(images), labels, jnp.asarray([1.0] * REAL + [0.0] * (PADDED - REAL))


def outcome(model, variables, rows: int, gradients: bool):
    """Losses by image, their means, batch statistics and, where asked for, gradients of the first `rows` rows."""
    random = np.random.default_rng(1)
    made_up = lambda *shape: jnp.asarray(random.normal(size=(PADDED, *shape)), jnp.float32)[:rows]
    geometry = model.geometry
    tokens = tuple(made_up(geometry.num_patches, geometry.dim) for _ in range(geometry.depth))
    taught = Aux((), (), None, made_up(geometry.prefix_tokens + geometry.num_patches, geometry.dim), {"tokens": tokens})
    teacher = (made_up(CLASSES), taught) if model.slim.needs_teacher else None
    labeller = losses.Predictions(made_up(CLASSES), made_up(geometry.num_patches, CLASSES)) if model.distilled else None
    weights = model.loss_weights(labeller is not None)

    def total(params, images, labels, mask):
        (logits, aux), updates = model.apply(
            {**variables, "params": params},
            images,
            train=True,
            return_aux=True,
            mask=mask if rows > REAL else None,
            rngs={"dropout": jax.random.key(3)},
            mutable=["batch_stats"],
        )
        found = model.losses(logits, aux, slim.Targets(labels, mask if rows > REAL else None, teacher, labeller))
        means = {name: losses.mean(value, mask) for name, value in found.items()}
        each = {name: value[:REAL] for name, value in found.items()}
        return sum(weights[name] * value for name, value in means.items()), (each, means, updates)

    step = jax.jit(jax.value_and_grad(total, has_aux=True) if gradients else total)
    return step(variables["params"], *(a[:rows] for a in data(model.img_size[0])))


@pytest.mark.parametrize("name", CASES)
def test_padded_rows_change_nothing(name):
    model = build(name)
    variables = random_variables(model)
    padded, alone = (outcome(model, variables, rows, name in COUPLED) for rows in (PADDED, REAL))
    scale = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(alone))
    assert np.isfinite(scale)
    for path, leaf in jax.tree_util.tree_leaves_with_path(alone):
        same = functools.reduce(lambda tree, key: tree[getattr(key, "key", getattr(key, "idx", None))], path, padded)
        np.testing.assert_allclose(same, leaf, rtol=1e-3, atol=2e-5 * max(1, scale), err_msg=str(path))


def test_a_padded_step_is_the_step_without_padding():
    """The whole step, mixing included; with micro-batches of two and one image that count."""
    model = slim.create_model("vit", img_size=8, patch_size=4, embed_dim=8, depth=1, num_heads=2, num_classes=CLASSES)
    optimizer = optax.sgd(0.1)
    options = StepOptions(model.loss_weights(), 0.1, MixupConfig(mode="element"), accumulate=2)
    whole = StepOptions(model.loss_weights(), 0.1, MixupConfig(mode="element"))
    images, _, _ = data(8)
    labels = jnp.asarray([1, 4, 2, -1])
    outcomes = []
    for rows, chosen in ((4, options), (3, whole)):
        step = make_train_step(model, model.losses, optimizer, lambda _: 0.1, jax.random.key(0), chosen)
        state = new_state(random_variables(model), "all", optimizer, ema=False)
        mask = (labels[:rows] >= 0).astype(jnp.float32)
        outcomes.append(jax.jit(step)(state, {"image": images[:rows], "label": labels[:rows], "mask": mask}))
    (padded, report), (alone, expected) = outcomes
    np.testing.assert_allclose(report, expected, rtol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), padded.params, alone.params)


def test_who_is_mixed_with_whom():
    x = jnp.arange(6)
    np.testing.assert_array_equal(boxes.mirrored(x), x[::-1])
    np.testing.assert_array_equal(boxes.mirrored(x, jnp.ones(6)), x[::-1])
    np.testing.assert_array_equal(boxes.mirrored(x, jnp.asarray([1.0, 0, 1, 1, 0, 0])), [3, 1, 2, 0, 4, 5])
    np.testing.assert_array_equal(boxes.mirrored(x, jnp.zeros(6)), x)


def test_a_loss_that_is_averaged_already_is_refused():
    class Averaged(slim.Slimming):
        def loss_terms(self, logits, aux, targets):
            return {"classification": super().loss_terms(logits, aux, targets)["classification"].mean()}

    model = slim.create_model("vit", Averaged(), img_size=8, patch_size=4, embed_dim=8, depth=1, num_heads=2)
    with pytest.raises(slim.SlimError, match="loss 'classification' of shape .* must be one value for each of the 2"):
        model.losses(jnp.zeros((2, 5)), Aux((), (), None, None), slim.Targets(jnp.zeros((2, 5))))
