"""What all methods promise that merge tokens by matching."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import random_variables

import slimvit_jax as slim
from slimvit_jax.errors import SlimError
from slimvit_jax.methods import METHODS
from slimvit_jax.methods.merging import Merging, RatioMerging
from slimvit_jax.ops import merge

MERGING = sorted(name for name, cls in METHODS.items() if issubclass(cls, Merging))
TINY = dict(img_size=24, patch_size=4, embed_dim=32, depth=3, num_heads=2, num_classes=5)  # 36 patches
FAMILIES = {
    "vit": ("vit", {}),
    "distilled": ("deit_distilled", {}),
    "registers": ("vit", {"reg_tokens": 3, "global_pool": "avg"}),
    "no class token": ("vit", {"class_token": False, "global_pool": "avg"}),
}
IMAGES = jax.random.normal(jax.random.key(7), (2, 24, 24, 3))


@functools.cache
def built(method, family="vit"):
    """(model, variables, jitted apply)."""
    name, options = FAMILIES[family]
    own = METHODS[method].__dataclass_fields__
    options = options | ({"keep_rate": 0.6} if "keep_rate" in own else {"r": 6})
    options = options | ({"locations": (1, 2)} if "locations" in own else {})
    model = slim.create_model(name, method=method, track_source=True, **TINY, **options)
    apply = jax.jit(lambda v, x: model.apply(v, x, return_aux=True))
    return model, random_variables(model), apply


@pytest.mark.parametrize("family", ["vit", "registers"])
@pytest.mark.parametrize("method", MERGING)
def test_every_original_token_has_an_owner_or_is_gone(method, family):
    model, variables, apply = built(method, family)
    _, aux = apply(variables, IMAGES)
    prefix, held = model.geometry.prefix_tokens, aux.features.shape[1]
    owner, source = np.asarray(aux.taps["owner"]), np.asarray(aux.taps["source"])
    assert owner.shape == (2, prefix + 36) and owner.dtype == np.int32 and (owner < held).all() and (owner >= -1).all()
    np.testing.assert_array_equal(owner[:, :prefix], [range(prefix)] * 2)  # nothing is merged into a prefix token
    assert (owner[:, prefix:] != 0).all()
    np.testing.assert_array_equal(source, owner[:, None] == np.arange(held)[:, None])
    assert (source.sum(axis=2) >= 1).all()  # every token held is made of something
    gone = (owner < 0).sum(axis=1)
    if method == "diffrate":
        dropped = sum(n - p for n, (p, _) in zip(model.slim.plan.attention, model.slim.counts, strict=True))
        assert dropped > 0 and (gone >= dropped).all()
    else:
        np.testing.assert_array_equal(gone, 0)
        np.testing.assert_array_equal(source.sum(axis=2), aux.taps["size"])


@pytest.mark.parametrize("method", MERGING)
def test_images_without_contrast_or_of_any_scale(method):
    _, variables, apply = built(method)
    for images in (jnp.zeros_like(IMAGES), jnp.ones_like(IMAGES), 1e6 * IMAGES, 1e-20 * IMAGES):
        logits, aux = apply(variables, images)
        assert np.isfinite(logits).all() and np.isfinite(aux.taps["size"]).all() and (aux.taps["size"] > 0).all()


@pytest.mark.parametrize(("method", "options"), [("pitome", {}), ("diffrate", {}), ("diffrate", {"target_flops": 0.6})])
def test_owners_in_a_batch_of_any_size(method, options):
    model = slim.create_model("vit", method=method, **TINY, **options)
    variables = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
    (batch,) = jax.export.symbolic_shape("b")
    exported = jax.export.export(jax.jit(lambda v, x: model.apply(v, x, return_aux=True)[1].taps["owner"]))
    images = jax.ShapeDtypeStruct((batch, 24, 24, 3), jnp.float32)
    assert exported(variables, images).out_avals[0].shape == (batch, 37)


def test_no_class_token():
    for method in MERGING:
        if METHODS[method].needs_class_token:
            continue
        model, variables, _ = built(method, "no class token")
        _, aux = jax.eval_shape(lambda v, x, model=model: model.apply(v, x, return_aux=True), variables, IMAGES)
        assert aux.features.shape[1] == model.slim.plan.mlp[-1]


@pytest.mark.parametrize("method", MERGING)
def test_the_fused_attention_stays_usable(method):
    slimming = built(method)[0].slim
    assert not any("attention" in slimming.needs(layer, train) for layer in (1, 2, 3) for train in (False, True))


@pytest.mark.parametrize("method", [name for name in MERGING if issubclass(METHODS[name], RatioMerging)])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 0.49}, r"ratio=0.49 must lie in \[0.5, 1\]"),
        ({"ratio": 1.01}, "ratio=1.01"),
        ({"ratio": "0.9"}, "ratio='0.9'"),
        ({"ratio": float("nan")}, "ratio=nan"),
        ({"keep_rate": 0}, "keep_rate=0"),
        ({"track_source": 1}, "track_source=1"),
        ({"r": 8}, "unknown option"),
    ],
)
def test_ratios_are_checked_at_construction(method, options, message):
    with pytest.raises(SlimError, match=message) as error:
        slim.create_model("vit", method=method, **TINY, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("method", [name for name in MERGING if issubclass(METHODS[name], RatioMerging)])
def test_keep_rate_is_the_mean_share(method):
    for rate in (1.0, 0.9, 0.7, 0.5):
        plan = slim.create_model("deit_small_patch16_224", method=method, keep_rate=rate).slim.plan
        assert abs(sum(plan.mlp) / 12 / 196 - rate) < 0.005
    assert slim.create_model("vit", method=method, ratio=0.5, **TINY).slim.plan.mlp[-1] in (4, 5)


# The algebra, small enough to check on paper -------------------------------------------------------------------------


def test_what_is_dropped_is_not_merged():
    """Six tokens after a class token; 3 and 5 stay, 1 joins 5, the others vanish."""
    matching = merge.Matching(
        held=jnp.asarray([[0, 3, 5]]), source=jnp.asarray([[1]]), target=jnp.asarray([[2]]), length=7
    )
    x, size = merge.merge_weighted(matching, jnp.arange(7.0)[None, :, None], jnp.asarray([[1.0, 2, 1, 1, 1, 1, 1]]))
    np.testing.assert_allclose(x[0, :, 0], [0, 3, (2 * 1 + 5) / 3])
    np.testing.assert_array_equal(size, [[1, 1, 3]])
    everyone = jnp.arange(7, dtype=jnp.int32)[None]
    np.testing.assert_array_equal(merge.merge_owner(matching, everyone), [[0, 2, -1, 1, -1, 2, -1]])
    np.testing.assert_array_equal(merge.merge_owner(matching, jnp.asarray([[-1, 5, 4]])), [[-1, 2, -1]])
    np.testing.assert_array_equal(merge.merge_origin(matching, jnp.asarray([[-1, 0, 1, 2, 3, 4, 5]])), [[-1, 2, -1]])
    np.testing.assert_allclose(
        merge.merge_scaled_sizes(matching, jnp.ones((1, 7)), jnp.asarray([[0.5]])), [[1, 1, 1.5]]
    )
    np.testing.assert_allclose(
        merge.merge_scaled_sizes(matching, jnp.ones((1, 7)), jnp.asarray([[-1.0]])), [[1, 1, 1e-6]]
    )
