"""Bipartite matching: parity with ToMe's code, by hand, properties."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import Golden, close

from slimvit_jax.ops import merge

BSM = Golden.load("tome_bsm")


@pytest.mark.parametrize("case", BSM.meta["hyper"]["raw_cases"], ids=lambda case: case["name"])
def test_matching_goldens(case):
    name, arrays = case["name"], BSM.arrays
    metric, x, size = (jnp.asarray(arrays[f"in/{name}/{key}"]) for key in ("metric", "x", "size"))
    protected = case["class_token"] + case["distill_token"]
    if case["r"] == 0:
        assert merge.bipartite_soft_matching(metric, 0, protected) is None
        return

    def everything(metric, x, size):
        matching = merge.bipartite_soft_matching(metric, case["r"], protected)
        everyone = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
        unit, sized = (merge.merge_weighted(matching, x, s) for s in (jnp.ones(x.shape[:2]), size[..., 0]))
        return {
            "merge_mean": unit[0],
            "x_unit": unit[0],
            "size_unit": unit[1][..., None],
            "x_sized": sized[0],
            "size_sized": sized[1][..., None],
            "source": merge.membership(merge.merge_owner(matching, everyone), matching.held.shape[1]),
            "unmerged": merge.unmerge(matching, unit[0]),
        }

    results = jax.jit(everything)(metric, x, size)
    for key, ours in results.items():
        if key != "unmerged" or not case["distill_token"]:  # the release's unmerge forgets its own re-ordering there
            close(ours, BSM.out(f"{name}/{key}"), 1e-6)


def test_matching_by_hand():
    # Class token, then a b a c a d in the plane: A = (cls, b, c, d), B = (a, a, a) at positions 1, 3, 5.
    angles = jnp.asarray([0.0, 0.0, 0.1, 1.0, 1.3, 2.0, 1.95])
    metric = jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=-1)[None]
    matching = merge.bipartite_soft_matching(metric, 2, 1)
    np.testing.assert_array_equal(matching.source, [[6, 2]])  # 0.05 apart, then 0.1
    np.testing.assert_array_equal(matching.held, [[0, 4, 1, 3, 5]])
    np.testing.assert_array_equal(matching.target, [[4, 2]])
    values = jnp.arange(7.0)[None, :, None]
    merged, size = merge.merge_weighted(matching, values, jnp.asarray([[1.0, 1, 3, 1, 1, 1, 1]]))
    np.testing.assert_allclose(merged[0, :, 0], [0, 4, (1 + 3 * 2) / 4, 3, 5.5])
    np.testing.assert_array_equal(size, [[1, 1, 4, 1, 2]])


@pytest.mark.parametrize("protected", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("length", [6, 7, 12, 13])
def test_matching_properties(protected, length):
    r = merge.most_merges(length, protected)
    metric, x = jax.random.normal(jax.random.key(length), (2, 2, length, 3))
    metric = metric.at[:, -1].set(0)  # a zero vector
    size = jnp.asarray(np.random.default_rng(0).integers(1, 5, (2, length)), jnp.float32)
    if r == 0:
        assert merge.bipartite_soft_matching(metric, 99, protected) is None
        return

    def everything(metric, x, size):
        matching = merge.bipartite_soft_matching(metric, 99, protected)
        return matching, *merge.merge_weighted(matching, x, size), merge.merge_sum(matching, x)

    matching, merged, new_size, summed = jax.jit(everything)(metric, x, size)
    assert matching.held.shape == (2, length - r)
    positions = jnp.concatenate([matching.held, matching.source], axis=1)
    np.testing.assert_array_equal(jnp.sort(positions, axis=1), [list(range(length))] * 2)
    np.testing.assert_array_equal(matching.held[:, :protected], [list(range(protected))] * 2)
    assert (np.asarray(matching.target) >= protected).all()
    np.testing.assert_allclose(new_size.sum(1), size.sum(1))
    np.testing.assert_allclose(jnp.einsum("bn,bnd->bd", new_size, merged), jnp.einsum("bn,bnd->bd", size, x), atol=1e-4)
    np.testing.assert_array_equal(merged[:, :protected], x[:, :protected])
    np.testing.assert_allclose(summed.sum(1), x.sum(1), atol=1e-5)
