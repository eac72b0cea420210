"""Top-k by hand."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

import slimvit_jax as slim
from slimvit_jax.plan import Geometry
from slimvit_jax.tokens import Tokens


def _six_tokens():
    """A class token and five patches of one channel with values 10, 1, 2, 3, 4, 5."""
    x = jnp.asarray([[10.0, 1, 2, 3, 4, 5]])[..., None]
    return Tokens(x=x, origin=jnp.arange(5, dtype=jnp.int32)[None])


def _bound(method):
    return method.bind(Geometry(grid=(1, 5), depth=1, dim=1, heads=2))


def test_topk_by_hand_and_ties_go_to_the_lower_index():
    method = _bound(slim.methods.TopK(keep_rate=0.6, locations=(1,)))
    attention = jnp.asarray([[[0.5, 0.1, 0.1, 0.2, 0.1, 0.0]]])
    tokens = method.after_attention(_six_tokens(), 1, {"class_attention": attention}, False)
    np.testing.assert_array_equal(tokens.origin, [[2, 0, 1]])


def test_imposed_scores_rank_the_patches():
    method = _bound(slim.methods.TopK(keep_rate=0.4, locations=(1,)))
    tokens = _six_tokens().remember(given_scores=jnp.asarray([[0.0, 1, 0, 0, 2]]))
    attention = jnp.full((1, 1, 6), 1 / 6)
    tokens = method.after_attention(tokens, 1, {"class_attention": attention}, False)
    np.testing.assert_array_equal(tokens.origin, [[4, 1]])
