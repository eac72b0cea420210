"""IA-RED2: algebra by hand, the policy gradient, padding."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from golden import close, run, small

import slimvit_jax as slim
from slimvit_jax.methods import ia_red2

TINY = dict(img_size=16, patch_size=4, embed_dim=24, depth=3, num_heads=2, num_classes=5)  # 16 patches
built = functools.partial(small, **TINY)
IMAGES = jax.random.normal(jax.random.key(7), (3, 16, 16, 3))
LABELS = jax.nn.one_hot(jnp.array([1, 2, 3]), 5)
METHODS = {
    "avit": dict(gate_scale=3.0, gate_center=2.0),
    "evo": dict(locations=(2, 3)),
    "sit": dict(locations=(1, 2)),
    "ia_red2": dict(locations=(1, 3)),
}


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
