"""ToFu: parity with the released code and with the paper's norm, its rule by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import Golden, close, groups

import slimvit_jax as slim
from slimvit_jax.errors import SlimError
from slimvit_jax.ops import merge


@pytest.mark.parametrize(("mlerp", "result"), [(False, "logits"), (True, "logits_paper_mlerp")])
def test_golden(mlerp, result):
    golden = Golden.load("tofu")
    model, variables = golden.model("tofu", ratio=golden.meta["hyper"]["ratio"], mlerp=mlerp)
    apply = jax.jit(lambda v, x: model.apply(v, x, return_aux=True))
    logits, aux = apply(variables, golden.images)
    close(logits, golden.out(result))
    np.testing.assert_array_equal(np.add(model.slim.plan.mlp, 1), golden.out("tokens_after_block"))
    assert aux.kept is None
    if not mlerp:
        np.testing.assert_array_equal(groups(aux.taps["owner"]), golden.out("group_11"))


def test_counts_of_the_published_ratios():
    merged = {
        0.9: (19, 17, 16, 14, 13, 11, 10, 9, 8, 8, 7, 6),
        0.925: (14, 13, 12, 11, 11, 10, 9, 8, 8, 7, 7, 6),
        0.95: (9, 9, 8, 8, 8, 7, 7, 7, 6, 6, 6, 5),
    }
    for ratio, counts in merged.items():
        assert slim.create_model("deit_small_patch16_224", method="tofu", ratio=ratio).slim.merged == counts
    registers = dict(img_size=8, patch_size=2, embed_dim=12, depth=2, num_heads=3, reg_tokens=3)
    assert slim.create_model("vit", method="tofu", ratio=0.9, **registers).slim.merged == (2, 1)  # of 20 and 18


def test_norms_by_hand():
    # 1 joins 2: lengths 10 and 5, mean (3, 6.5)
    matching = merge.Matching(
        held=jnp.asarray([[0, 2]]), source=jnp.asarray([[1]]), target=jnp.asarray([[1]]), length=3
    )
    x = jnp.asarray([[[1.0, 1], [6, 8], [0, 5]]])
    mean = np.asarray([3, 6.5])
    np.testing.assert_allclose(
        merge.merge_keeping_norm(matching, x, exact=False)[0], [[1, 1], mean / 5 * 10], rtol=1e-6
    )
    preserved = merge.merge_keeping_norm(matching, x, exact=True)[0]
    np.testing.assert_allclose(preserved, [[1, 1], mean / np.linalg.norm(mean) * 10], rtol=1e-6)


def test_opposite_and_empty_tokens_stay_finite():
    matching = merge.Matching(held=jnp.asarray([[0]]), source=jnp.asarray([[1]]), target=jnp.asarray([[0]]), length=2)
    for pair in ([[1.0, 2], [-1, -2]], [[0.0, 0], [3, 4]], [[0.0, 0], [0, 0]]):
        for exact in (False, True):
            total = lambda x, exact=exact: merge.merge_keeping_norm(matching, x, exact).sum()
            value, gradient = jax.value_and_grad(total)(jnp.asarray([pair]))
            assert np.isfinite(value) and np.isfinite(gradient).all()


def test_cost_and_options():
    size = dict(img_size=8, patch_size=2, embed_dim=12, depth=2, num_heads=3)
    model = slim.create_model("vit", method="tofu", ratio=0.7, **size)
    assert model.slim.extra_flops() == {1: 9 * 8 * 4, 2: 6 * 6 * 4}  # layers up to T // 2 + 1 only drop
    deeper = slim.create_model("vit", method="tofu", ratio=0.7, **{**size, "depth": 3})
    assert deeper.slim.merged == (5, 3, 2) and deeper.slim.extra_flops()[3] == 5 * 4 * 4 + (3 * 2 + 2 * 4) * 12
    with pytest.raises(SlimError, match="mlerp='yes'"):
        slim.create_model("vit", method="tofu", mlerp="yes", **size)
