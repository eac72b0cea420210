"""PiToMe: parity with the official code, and its rule by hand."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from golden import Golden, close, groups

import slimvit_jax as slim
from slimvit_jax.ops import merge


def test_golden():
    golden = Golden.load("pitome")
    model, variables = golden.model("pitome", ratio=golden.meta["hyper"]["ratio"])
    apply = jax.jit(lambda v, x: model.apply(v, x, return_aux=True))
    logits, aux = apply(variables, golden.images)
    close(logits, golden.out("logits"))
    np.testing.assert_array_equal(np.add(model.slim.plan.mlp, 1), golden.out("tokens_after_block"))
    np.testing.assert_array_equal(aux.taps["size"], golden.out("size_8"))
    np.testing.assert_array_equal(groups(aux.taps["owner"]), golden.out("group_8"))
    for block in range(9):  # in the order held, which the next matching depends on
        close(aux.taps["energy"][block], golden.out(f"energy_{block}"), 1e-5)
    np.testing.assert_array_equal(aux.scores, aux.taps["energy"][0])
    assert aux.kept is None


def test_counts_of_the_published_ratios():
    left = {0.9: 59, 0.9125: 68, 0.925: 81, 0.95: 110, 0.975: 150}
    for ratio, count in left.items():
        assert slim.create_model("deit_small_patch16_224", method="pitome", ratio=ratio).slim.plan.mlp[-1] == count
    model = slim.create_model("deit_small_patch16_224", method="pitome", ratio=0.9)
    assert model.slim.merged == (19, 17, 16, 14, 13, 11, 10, 9, 8, 7, 7, 6)
    assert slim.create_model("deit_small_patch16_224", method="pitome", ratio=1).slim.plan.mlp == (196,) * 12


def test_energy_by_hand():
    metric = jnp.asarray([[[2.0, 0], [0, 1], [3, 4], [0, 0]]])
    cosines = np.asarray([[1, 0, 0.6, 0], [0, 1, 0.8, 0], [0.6, 0.8, 1, 0], [0, 0, 0, 0]])
    elu = lambda x: x if x > 0 else math.expm1(x)
    expected = [np.mean([elu(c - 0.5) for c in row]) for row in cosines]
    np.testing.assert_allclose(merge.energy(metric, 0.5)[0], expected, rtol=1e-5)


def _matched(everyone, r):
    # On the unit circle, behind a class token: two pairs that are close, and one token alone.
    angles = jnp.asarray([0.0, 0.0, 2.5, 0.1, 1.2, 1.0])
    metric = jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=-1)[None]
    energy = jnp.asarray([[5.0, 1, 4, 3, 2]])  # order of the patches: 0, 2, 3, 4, 1
    matching = merge.energy_matching(metric, energy, r, 1, everyone)
    return [np.asarray(a[0]).tolist() for a in (matching.held, matching.source, matching.target)]


def test_both_matchings_by_hand():
    # A = patches 0, 3, 1 and B = 2, 4 of the ranking; nearest: 0-2 (0.1), 3-4 (0.2), 1-4 (1.5)
    assert _matched(True, 1) == [[0, 4, 2, 3, 5], [1], [3]]
    assert _matched(True, 2) == [[0, 2, 3, 5], [1, 4], [2, 3]]
    # Only the 2 r first of the ranking: A = 0 (and 3), B = 2 (and 4); all of A merge
    assert _matched(False, 1) == [[0, 4, 5, 2, 3], [1], [4]]
    assert _matched(False, 2) == [[0, 2, 3, 5], [1, 4], [2, 3]]


def test_cost():
    model = slim.create_model(
        "vit", method="pitome", ratio=0.5, img_size=8, patch_size=2, embed_dim=12, depth=2, num_heads=3
    )
    assert model.slim.extra_flops() == {1: (16 * 16 + 64) * 4 + 3 * 8 * 12, 2: (8 * 8 + 16) * 4 + 3 * 4 * 12}
