"""Lives from coverage: the order by hand, against a slow reference, ties, options, training."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import random_variables

import slimvit_jax as slim
from slimvit_jax.errors import SlimError
from slimvit_jax.ops import coverage

TINY = dict(img_size=(20, 16), patch_size=4, embed_dim=32, depth=4, num_heads=2, num_classes=5)  # 20 patches
TWO = dict(keep_rate=0.5, locations=(2, 3))
IMAGES = np.random.default_rng(3).normal(size=(3, 20, 16, 3)).astype(np.float32)


@functools.cache
def built(lives, **options):
    model = slim.create_model("vit", method="life_regression", lives=lives, **{**TINY, **TWO, **options})
    return model, random_variables(model)


def run(model, variables, images=IMAGES, **options):
    apply = jax.jit(lambda v, x: model.apply(v, x, return_aux=True, **options))
    return apply(variables, images)


def reference_order(patches, first):
    """The definition, one patch at a time, in float64."""
    x = np.asarray(patches, np.float64)
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    order = [int(first)]
    while len(order) < len(x):
        covered = (x @ x[order].T).max(axis=1)
        covered[order] = np.inf
        order.append(int(covered.argmin()))
    return order


def test_order_by_hand():
    angles = np.radians([0.0, 10, 90, 50, 180])
    patches = jnp.asarray(np.stack([np.cos(angles), np.sin(angles)], axis=-1))[None]
    ranks = coverage.greedy_ranks(patches, jnp.asarray([0]))
    # From 0 degrees the farthest is 180, then 90 in the middle, then 50 (40 from 90), then 10.
    np.testing.assert_array_equal(ranks, [[0, 4, 2, 3, 1]])


def test_order_against_the_definition():
    patches = np.random.default_rng(0).normal(size=(2, 24, 6))
    ranks = coverage.greedy_ranks(jnp.asarray(patches, jnp.float32), jnp.asarray([3, 17]))
    for image, first, ranked in zip(patches, (3, 17), ranks, strict=True):
        np.testing.assert_array_equal(np.argsort(ranked), reference_order(image, first))


def test_ties_are_broken_by_index():
    alike = jnp.broadcast_to(jnp.asarray(np.random.default_rng(1).normal(size=32), jnp.float32), (2, 20, 32))
    for patches in (alike, jnp.zeros((2, 20, 32))):
        first = jnp.asarray([0, 5])
        np.testing.assert_array_equal(np.argsort(coverage.greedy_ranks(patches, first)), without_5_in_front(range(20)))
        spread = np.argsort(coverage.coarse_to_fine(4, 5))
        ranks = coverage.parallel_ranks(patches, first, (4, 5))
        np.testing.assert_array_equal(np.argsort(ranks), without_5_in_front(spread))


def without_5_in_front(order):
    return [list(order), [5, *(p for p in order if p != 5)]]


def test_parallel_order_by_hand():
    angles = np.radians([0.0, 10, 90, 45, 180, 60])
    patches = jnp.asarray(np.stack([np.cos(angles), np.sin(angles)], axis=-1))[None]
    # On a grid of 2 x 3 the patches come in the order 0, 2, 4, 1, 3, 5. Degrees to the nearest one before, pass 1:
    # 2: 90, 4: 90, 1: 10, 3: 35, 5: 15. In the order 0, 2, 4, 3, 5, 1 it is 90, 90, 45, 15, 10: it stands.
    np.testing.assert_array_equal(np.argsort(coverage.coarse_to_fine(2, 3)), [0, 2, 4, 1, 3, 5])
    for passes in (1, 2):
        ranks = coverage.parallel_ranks(patches, jnp.asarray([0]), (2, 3), passes)
        np.testing.assert_array_equal(np.argsort(ranks), [[0, 2, 4, 3, 5, 1]])
    # Patch 5, at 60 degrees, in front of 0, 2, 4, 1, 3. Pass 1: 0: 60, 2: 30, 4: 90, 1: 10, 3: 15.
    ranks = coverage.parallel_ranks(patches, jnp.asarray([5]), (2, 3))
    np.testing.assert_array_equal(np.argsort(ranks), [[5, 4, 0, 2, 3, 1]])


def test_parallel_order_is_nearly_as_good():
    rng = np.random.default_rng(2)
    patches = np.repeat(rng.normal(size=(4, 16, 24)), 4, axis=1) + 0.05 * rng.normal(size=(4, 64, 24))
    patches = np.stack([image[rng.permutation(64)] for image in patches])  # 16 kinds of patches, 4 of each kind
    ranks = coverage.parallel_ranks(jnp.asarray(patches, jnp.float32), jnp.asarray([3, 9, 0, 63]), (8, 8))
    for image, ranked, first in zip(patches, np.asarray(ranks), (3, 9, 0, 63), strict=True):
        order = np.argsort(ranked)
        assert order[0] == first and sorted(order) == list(range(64))
        x = image / np.linalg.norm(image, axis=1, keepdims=True)
        nearest = (x @ x[order[:16]].T).max(axis=1)
        assert nearest.min() > 0.9  # sixteen patches: one of each kind


@pytest.mark.parametrize("lives", ["coverage", "both"])
def test_lives_follow_the_order(lives):
    model, variables = built(lives, coverage_order="greedy")
    assert ("slim" in variables["params"]) == (lives == "both")
    if lives == "both":  # as initialised: the learned part starts at nothing
        fresh = model.init(jax.random.key(0), IMAGES[:1])["params"]["slim"]["life_predictor"]
        assert not np.any(fresh["weight"])
        variables = {"params": {**variables["params"], "slim": {"life_predictor": fresh}}}
    _, aux = run(model, variables, record_tokens=True)
    dense = slim.create_model("vit", **TINY)
    _, seen = run(dense, {"params": {k: v for k, v in variables["params"].items() if k != "slim"}}, record_tokens=True)
    for image, lived, kept in zip(seen.taps["tokens"][1], aux.scores, aux.kept[0], strict=True):
        order = np.argsort(-lived)
        np.testing.assert_array_equal(order, reference_order(image, order[0]))
        np.testing.assert_array_equal(kept, order[:10])
    moments = np.mean(aux.scores, axis=1), np.std(aux.scores, axis=1)
    lifetimes = np.repeat([2, 3, 4], [10, 5, 5])
    np.testing.assert_allclose(moments, [[lifetimes.mean()] * 3, [lifetimes.std()] * 3], rtol=1e-5)


def test_the_first_has_the_highest_class_attention():
    model, variables = built("coverage")
    _, aux = run(model, variables)
    peer = slim.create_model("vit", method="topk", keep_rate=0.5, locations=(2,), **TINY)
    _, ranked = run(peer, variables)
    np.testing.assert_array_equal(aux.kept[0][:, 0], ranked.kept[0][:, 0])
    no_class = dict(class_token=False, global_pool="avg")
    model, variables = built("coverage", **no_class)
    _, aux = run(model, variables)
    _, seen = run(slim.create_model("vit", **no_class, **TINY), variables, record_tokens=True)
    x = np.asarray(seen.taps["tokens"][1])
    towards = np.einsum("bnd,bd->bn", x, x.mean(axis=1)) / np.linalg.norm(x, axis=2)
    np.testing.assert_array_equal(aux.kept[0][:, 0], towards.argmax(axis=1))  # the most central patch


@pytest.mark.parametrize("lives", ["coverage", "both"])
def test_constant_images(lives):
    model, variables = built(lives)
    images = np.zeros((2, 20, 16, 3), np.float32)
    (logits, aux), (again, _) = run(model, variables, images), run(model, variables, images[:1])
    assert np.isfinite(logits).all() and np.isfinite(aux.scores).all()
    np.testing.assert_allclose(logits[0], logits[1], atol=1e-6)
    np.testing.assert_allclose(logits[:1], again, atol=1e-5)


def test_small_grids_are_ordered_one_by_one():
    (auto, variables), (greedy, _) = built("coverage"), built("coverage", coverage_order="greedy")
    np.testing.assert_array_equal(run(auto, variables)[1].scores, run(greedy, variables)[1].scores)
    parallel, _ = built("coverage", coverage_order="parallel")
    logits, aux = run(parallel, variables)
    ranks = np.argsort(-aux.scores, axis=1)
    assert np.isfinite(logits).all() and all(sorted(row) == list(range(20)) for row in ranks)


def test_hard_training_of_coverage_really_drops():
    model, variables = built("coverage", hard=True, squeeze="mean")
    assert model.slim.train_plan == model.slim.plan
    expected, _ = run(model, variables)
    logits, _ = run(model, variables, train=True, rngs={"dropout": jax.random.key(0)})
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    drawn, _ = built("coverage", hard=True, sampled_rates=(0.5, 1.0))
    assert drawn.slim.train_plan.mlp == (20,) * 4  # budgets differ between images: masked


def test_both_trains_its_predictor():
    model, variables = built("both", hard=True, squeeze="mean")

    def loss(params):
        rngs = {"dropout": jax.random.key(1)}
        return jnp.square(model.apply({"params": params}, IMAGES, train=True, rngs=rngs)).sum()

    gradients = jax.jit(jax.grad(loss))(variables["params"])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    assert np.abs(gradients["slim"]["life_predictor"]["weight"]).max() > 0


def test_bad_lives():
    with pytest.raises(SlimError, match="lives 'rank'.*learned"):
        slim.create_model("vit", method="life_regression", lives="rank", **TINY)


def test_flops():
    learned, covered, both = (slim.flops(built(lives)[0]).method for lives in ("learned", "coverage", "both"))
    assert covered == 20 * 20 * 32 + 21 * 32  # the similarities and the class token's row
    assert both == covered + learned
