"""What a method asks to see of an attention: every entry is a part of one matrix, and looking changes nothing."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slimvit_jax.block import Attention

SEEN = ("attention", "received", "class_attention", "keys", "values", "inputs")


@pytest.mark.parametrize("policy", [False, True], ids=["", "policy"])
@pytest.mark.parametrize("class_token", [False, True], ids=["", "class token"])
def test_the_probe(class_token, policy):
    """Under a policy too, whose softmax the probe leaves out, so that dropped tokens are seen alike."""
    module = Attention(8, 2, class_token=class_token)
    y = jax.random.normal(jax.random.key(0), (3, 5, 8))
    variables = module.init(jax.random.key(1), y, None, None, (), False)
    keep = (jnp.arange(5) != 3) * jnp.ones((3, 1)) if policy else None
    see = lambda needs: module.apply(variables, y, None, keep, needs, False)
    out, nothing = see(())
    assert nothing == {}
    for needs in itertools.chain([SEEN], itertools.combinations(SEEN, 1), itertools.combinations(SEEN, 2)):
        branch, probe = see(needs)
        assert probe.keys() == set(needs)
        np.testing.assert_allclose(branch, out, atol=1e-6)
    _, probe = see(SEEN)
    query, key, value = module.apply(variables, y, method="heads")
    matrix = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", query, key) / 2.0)
    row = matrix[:, :, 0] if class_token else matrix.mean(axis=2)
    for name, want in zip(SEEN, (matrix, matrix.mean(axis=2), row, key, value, y), strict=True):
        np.testing.assert_allclose(probe[name], want, atol=1e-6, err_msg=name)
