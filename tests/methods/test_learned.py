"""A-ViT, Evo-ViT, SiT and IA-RED2: options, costs, what holds for all of them."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
from golden import close, run, small

import slimvit_jax as slim
from slimvit_jax.errors import SlimError

TINY = dict(img_size=16, patch_size=4, embed_dim=24, depth=3, num_heads=2, num_classes=5)  # 16 patches
built = functools.partial(small, **TINY)
IMAGES = jax.random.normal(jax.random.key(7), (3, 16, 16, 3))
METHODS = {
    "avit": dict(gate_scale=3.0, gate_center=2.0),
    "evo": dict(locations=(2, 3)),
    "sit": dict(locations=(1, 2)),
    "ia_red2": dict(locations=(1, 3)),
}


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("avit", dict(gate_scale="x"), "gate_scale='x'"),
        ("avit", dict(gate_scale=-1.0), "gate_scale=-1.0"),
        ("avit", dict(budgets=(16, 17, 1)), "must not grow"),
        ("avit", dict(budgets=(16, 8)), "2 entries for 3 layers"),
        ("avit", dict(prior_center=0), "prior_center=0"),
        ("avit", dict(layer_score="mean"), "layer_score"),
        ("evo", dict(locations=(1, 2)), "layer 1"),
        ("evo", dict(), r"1\.\.3"),
        ("evo", dict(locations=(2,), tradeoff=1.5), "tradeoff=1.5"),
        ("evo", dict(locations=(2,), tradeoff=(0.5,)), "1 values for 3 layers"),
        ("evo", dict(locations=(2,), representative=1), "representative=1"),
        ("evo", dict(locations=(2,), class_token=False, global_pool="avg"), "no class token"),
        ("sit", dict(stage_blocks=(2, 2)), "4 layers in all"),
        ("sit", dict(stage_blocks=(3,)), "stage_blocks"),
        ("sit", dict(locations=(2, 5)), r"1\.\.3"),
        ("sit", dict(locations=(2,), keep_rate=0.0), "keep_rate=0.0"),
        ("ia_red2", dict(tau=-1), "tau=-1"),
        ("ia_red2", dict(active_groups=4), "active_groups=4"),
        ("ia_red2", dict(initial_keep=1.0), "initial_keep=1.0"),
        ("ia_red2", dict(keep_rate=(0.5, 0.5)), "2 rates for 3 locations"),
    ],
)
def test_bad_options_are_refused_at_construction(method, options, message):
    with pytest.raises(SlimError, match=message) as error:
        slim.create_model("vit", method=method, **TINY, **options)
    assert "\n" not in str(error.value)


def test_flops_count_the_methods():
    extra = lambda method, **options: slim.create_model("vit", method=method, **TINY, **options).slim.extra_flops()
    assert extra("avit", budgets=(16, 8, 4)) == {1: 17 * 24, 2: 9 * 24, 3: 5 * 24}
    assert extra("evo", locations=(2, 3)) == {1: 17 * 24, 2: 10 * 24 + 8 * 24, 3: 8 * 24}
    assert extra("evo", locations=(2,), representative=False) == {1: 17 * 24}
    assert extra("sit", locations=(2,)) == {2: 16 * (24 * 12 + 12 * 8 + 8 * 24)}
    assert extra("ia_red2", locations=(2,), keep_rate=0.5) == {2: 2 * 24 * 24 + 16 * 2 * 24}
    assert extra("ia_red2", locations=(2,), keep_rate=1.0) == {}


@pytest.mark.parametrize(
    ("method", "family", "more"),
    [*((method, "vit", {}) for method in METHODS), ("avit", "deit_distilled", {"budgets": (16, 9, 4)})],
)
def test_inference(method, family, more):
    model, variables = built(family, method=method, **METHODS[method], **more)
    traces = []

    @jax.jit
    def infer(variables, images):
        traces.append(images.shape)
        return model.apply(variables, images, return_aux=True, record_tokens=True)

    logits, aux = infer(variables, IMAGES)
    assert aux.token_counts == model.slim.plan.token_counts
    made_up = method == "evo"
    for layer, tokens in enumerate(aux.taps["tokens"]):
        expected = model.slim.plan.mlp[layer]
        after = {"sit": model.slim.plan.mlp[min(layer + 1, 2)], "evo": 16}.get(method, expected)
        assert tokens.shape == (3, after if layer or method == "sit" else expected, 24)
    assert aux.features.shape[1] == model.geometry.prefix_tokens + (aux.token_counts[-1] if method not in
                                                                    ("avit", "evo") else 16)  # fmt: skip
    assert aux.scores.shape == (3, 16)
    if model.slim.merges:
        assert aux.kept is None
        np.testing.assert_allclose(aux.scores.sum(1), 1.0, rtol=1e-5)
    else:
        for kept in aux.kept:
            kept = np.asarray(kept)[:, : kept.shape[1] - made_up]
            assert all(len(set(row)) == len(row) and set(row) <= set(range(16)) for row in kept)
    with jax.transfer_guard("disallow"):
        again, _ = infer(variables, IMAGES)
    assert len(traces) == 1
    np.testing.assert_array_equal(again, logits)
    close(infer(variables, IMAGES[1:2])[0][0], np.asarray(logits[1]), 1e-5)


def test_keeping_everything():
    logits = lambda model, params: np.asarray(run(model, {"params": params}, IMAGES)[0])
    dense, weights = built()
    weights = weights["params"]
    expected = logits(dense, weights)
    model, variables = built(method="ia_red2", keep_rate=1.0)
    close(logits(model, {**weights, "slim": variables["params"]["slim"]}), expected, 1e-5)
    close(logits(built(method="avit", gate_center=1000.0)[0], weights), expected, 1e-5)
    # Evo-ViT pools the patches: with all of them it is the dense model with that pooling
    pooled = slim.create_model("vit", global_pool="avg", **TINY)
    expected = logits(pooled, {("fc_norm" if name == "norm" else name): value for name, value in weights.items()})
    model, variables = built(method="evo", keep_rate=1.0, locations=(2,))
    close(logits(model, {**weights, "slim": variables["params"]["slim"]}), expected, 1e-5)
    assert [slim.methods.METHODS[m].keep_all_is_dense for m in METHODS] == [False, False, False, True]
