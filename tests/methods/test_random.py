"""Random patches."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from golden import drawn, run, small

import slimvit_jax as slim

TINY = dict(img_size=24, patch_size=4, embed_dim=32, depth=4, num_heads=2, num_classes=5)  # 36 patches
built = functools.partial(small, **TINY)
TWO = dict(locations=(2, 3))
IMAGES = jax.random.normal(jax.random.key(7), (2, 24, 24, 3))


def test_random_is_the_same_everywhere_at_inference_and_differs_in_training():
    model, variables = built("vit", "random", keep_rate=0.5, **TWO)
    _, aux = run(model, variables, IMAGES)
    np.testing.assert_array_equal(aux.kept[0][0], aux.kept[0][1])
    np.testing.assert_array_equal(aux.kept[1], aux.kept[0][:, : aux.kept[1].shape[1]])
    other = slim.create_model("vit", method="random", keep_rate=0.5, seed=1, **TWO, **TINY)
    assert (run(other, variables, IMAGES)[1].kept[0] != aux.kept[0]).any()
    first, again, other = (np.asarray(aux.kept[0]) for aux in drawn(model, variables, IMAGES, (0, 0, 1)))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any() and (first[0] != first[1]).any()
    scores = jax.random.normal(jax.random.key(3), (2, 36))
    _, given = run(model, variables, IMAGES, scores=scores)
    np.testing.assert_array_equal(given.kept[0], jnp.argsort(-scores, axis=1)[:, :18])
    np.testing.assert_array_equal(given.scores, scores)
