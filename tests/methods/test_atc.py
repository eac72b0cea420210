"""ATC: scikit-learn's clusters, a second implementation of the whole model, its options and cost."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import groups, random_variables
from scipy.special import erf
from sklearn.cluster import AgglomerativeClustering

import slimvit_jax as slim
from slimvit_jax.errors import SlimError
from slimvit_jax.ops import linkage

LINKAGES = ("average", "complete", "single")
TINY = dict(img_size=20, patch_size=4, embed_dim=32, depth=3, num_heads=2, num_classes=5)  # 25 patches


def reference_clusters(distances, count, how):
    """(n,) lowest member of each token's cluster, by scikit-learn."""
    fitted = AgglomerativeClustering(n_clusters=count, metric="precomputed", linkage=how).fit(distances)
    return (fitted.labels_[:, None] == fitted.labels_).argmax(axis=1)


@pytest.mark.parametrize("how", LINKAGES)
def test_the_clusters_are_scikit_learns(how):
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(4, 40, 6)) + 2 * rng.normal(size=(4, 1, 6))
    distances = np.asarray(linkage.cosine_distances(jnp.asarray(tokens, jnp.float32)))
    np.testing.assert_array_equal(distances, distances.swapaxes(1, 2))
    cut = jax.jit(linkage.agglomerate, static_argnums=(1, 2))
    for count in (1, 12, 39, 40):
        ours = np.asarray(cut(distances, count, how))
        for image in range(4):
            np.testing.assert_array_equal(ours[image], reference_clusters(distances[image], count, how))


def test_by_hand():
    """Five points on a line at 0, 1, 2.1, 4.1, 6: "single" chains them, "complete" does not."""
    place = jnp.asarray([0.0, 1, 2.1, 4.1, 6])
    distances = jnp.abs(place[:, None] - place)[None]
    expected = {"single": [0, 0, 0, 3, 3], "average": [0, 0, 0, 3, 3], "complete": [0, 0, 2, 3, 3]}
    counts = {"single": 2, "average": 2, "complete": 3}
    for how, leaders in expected.items():
        np.testing.assert_array_equal(linkage.agglomerate(distances, counts[how], how)[0], leaders)
    chained = linkage.agglomerate(jnp.abs(place[:4, None] - place[:4])[None], 2, "single")
    np.testing.assert_array_equal(chained[0], [0, 0, 0, 3])
    matching = linkage.matching(jnp.asarray([[0, 1, 0, 1, 4]]), 3, 2)
    np.testing.assert_array_equal(matching.held[0], [0, 1, 2, 3, 6])
    np.testing.assert_array_equal(matching.source[0], [4, 5])
    np.testing.assert_array_equal(matching.target[0], [2, 3])


def test_alike_and_broken_tokens_come_to_an_end():
    for value in (0.0, 1.0, np.nan, np.inf):
        leader = np.asarray(linkage.agglomerate(jnp.full((2, 6, 6), value), 2, "average"))
        assert all(len(set(row)) == 2 for row in leader.tolist())
    np.testing.assert_array_equal(linkage.agglomerate(jnp.zeros((1, 5, 5)), 2, "complete")[0], [0, 0, 0, 0, 4])


def forward(state, images, counts, how, proportional, depth, heads, patch):
    """The model in float64, image by image: `counts` of clusters by 1-based layer."""
    get = lambda name: np.asarray(state[name], np.float64)

    def normed(x, name):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return x * get(f"{name}.weight") + get(f"{name}.bias")

    linear = lambda x, name: x @ get(f"{name}.weight").T + get(f"{name}.bias")
    logits, members = [], []
    for image in np.asarray(images, np.float64):
        rows = image.shape[0] // patch
        cut = image.reshape(rows, patch, rows, patch, 3).transpose(0, 2, 4, 1, 3).reshape(rows * rows, -1)
        kernel = get("patch_embed.proj.weight")
        x = cut @ kernel.reshape(len(kernel), -1).T + get("patch_embed.proj.bias")
        x = np.concatenate([get("cls_token")[0], x]) + get("pos_embed")[0]
        size, owner = np.ones(len(x)), np.arange(len(x))
        for layer in range(1, depth + 1):
            name = f"blocks.{layer - 1}"
            qkv = linear(normed(x, f"{name}.norm1"), f"{name}.attn.qkv").reshape(len(x), 3, heads, -1)
            q, k, v = qkv.transpose(1, 2, 0, 3)
            weights = q @ k.swapaxes(1, 2) / np.sqrt(k.shape[-1]) + (np.log(size) if proportional else 0)
            weights = np.exp(weights - weights.max(-1, keepdims=True))
            read = weights / weights.sum(-1, keepdims=True) @ v
            x = x + linear(read.swapaxes(0, 1).reshape(x.shape), f"{name}.attn.proj")
            if layer in counts:
                metric = k.mean(axis=0)[1:]
                metric = metric / np.linalg.norm(metric, axis=1, keepdims=True)
                leader = reference_clusters(1 - metric @ metric.T, counts[layer], how)
                inside = np.unique(leader)[:, None] == leader
                inside = np.block([[np.ones((1, 1)), np.zeros((1, len(leader)))], [np.zeros((len(inside), 1)), inside]])
                size = size if proportional else np.ones(len(x))
                x, size = inside @ (x * size[:, None]) / (inside @ size)[:, None], inside @ size
                owner = inside.argmax(axis=0)[owner]
            hidden = linear(normed(x, f"{name}.norm2"), f"{name}.mlp.fc1")
            x = x + linear(hidden * (1 + erf(hidden / np.sqrt(2))) / 2, f"{name}.mlp.fc2")
        logits.append(linear(normed(x, "norm")[0], "head"))
        members.append(owner)
    return np.stack(logits), np.stack(members)


@pytest.mark.parametrize(("how", "proportional"), [("average", True), ("complete", True), ("single", False)])
def test_a_second_implementation(how, proportional):
    options = dict(keep_rate=(0.6, 0.5), locations=(1, 2), linkage=how, prop_attn=proportional)
    model = slim.create_model("vit", method="atc", **TINY, **options)
    assert model.slim.plan.mlp == (15, 7, 7)
    variables = random_variables(model)
    images = np.random.default_rng(5).normal(size=(3, 20, 20, 3)).astype(np.float32)
    apply = jax.jit(lambda v, x: model.apply(v, x, return_aux=True))
    logits, aux = apply(variables, images)
    state = slim.to_torch(model, variables)
    expected, owner = forward(state, images, {1: 15, 2: 7}, how, proportional, depth=3, heads=2, patch=4)
    np.testing.assert_array_equal(groups(aux.taps["owner"]), groups(owner))
    np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_cost_and_options():
    model = slim.create_model("vit", method="atc", keep_rate=0.6, locations=(1, 3), **TINY)
    assert model.slim.extra_flops() == {1: 25 * 25 * 16 + 10 * 15 * 32, 3: 15 * 15 * 16 + 6 * 9 * 32}
    with pytest.raises(SlimError, match="unknown linkage 'ward'; choices: average, complete, single"):
        slim.create_model("vit", method="atc", locations=(1,), linkage="ward", **TINY)
