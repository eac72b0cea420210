"""EViT by hand, and its schedule of keep rates."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import run, small

import slimvit_jax as slim
from slimvit_jax.errors import SlimError
from slimvit_jax.methods.evit import keep_rate_schedule
from slimvit_jax.plan import Geometry
from slimvit_jax.tokens import Tokens

TINY = dict(img_size=24, patch_size=4, embed_dim=32, depth=4, num_heads=2, num_classes=5)  # 36 patches
built = functools.partial(small, **TINY)
IMAGES = jax.random.normal(jax.random.key(7), (2, 24, 24, 3))


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


def test_evit_that_keeps_all_but_one_notes_the_reduction():
    model, variables = built("vit", "evit", keep_rate=0.97, locations=(2,))
    _, aux = run(model, variables, IMAGES)
    assert model.slim.plan.mlp == (36,) * 4  # one dropped, one fused
    assert len(aux.kept) == 1 and aux.kept[0].shape[1] == 35 and (aux.kept[0] >= 0).all()
