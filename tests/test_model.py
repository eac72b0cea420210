"""create_model and the backbones: the contract, its errors, and what no golden covers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import slimvit_jax as slim
from slimvit_jax.ops.attention import attention

TINY = dict(img_size=12, patch_size=3, embed_dim=24, depth=3, num_heads=2, num_classes=5)


def build(**options):
    model = slim.create_model("vit", **{**TINY, **options})
    images = jax.random.normal(jax.random.key(1), (2, *model.img_size, model.in_chans))
    return model, jax.jit(model.init)(jax.random.key(0), images), images


def test_backbone_parameters_do_not_depend_on_the_method():
    model, variables, images = build()
    slimmed, with_method, _ = build(method="life_regression", locations=(1, 2))
    backbone = {name: leaf for name, leaf in with_method["params"].items() if name != "slim"}
    jax.tree.map(np.testing.assert_array_equal, backbone, variables["params"])


def test_a_method_object_is_as_good_as_its_name():
    by_name = slim.create_model("vit", "life_regression", keep_rate=0.5, locations=[1, 2], **TINY)
    by_object = slim.create_model("vit", slim.methods.LifeRegression(keep_rate=0.5, locations=(1, 2)), **TINY)
    assert by_name == by_object and hash(by_name) == hash(by_object)


def test_drop_path_grows_with_depth_and_needs_a_key():
    model, variables, images = build(drop_path_rate=0.5, depth=4)
    bound = model.bind(variables)
    assert [block.drop_path for block in bound.blocks] == pytest.approx([0, 1 / 6, 1 / 3, 0.5])
    train = lambda seed: model.apply(variables, images, train=True, rngs={"dropout": jax.random.key(seed)})
    assert jnp.abs(train(0) - train(1)).max() > 1e-4
    np.testing.assert_array_equal(train(0), train(0))
    np.testing.assert_array_equal(model.apply(variables, images), model.apply(variables, images))


@pytest.mark.parametrize("option", ["drop_rate", "pos_drop_rate", "proj_drop_rate"])
def test_dropout_acts_in_training_only(option):
    model, variables, images = build(**{option: 0.5})
    plain, _, _ = build()
    train = model.apply(variables, images, train=True, rngs={"dropout": jax.random.key(0)})
    reference = plain.apply(variables, images)
    assert jnp.abs(train - reference).max() > 1e-4
    np.testing.assert_array_equal(model.apply(variables, images), reference)


def test_bfloat16_computes_close_to_float32_with_float32_parameters():
    model, variables, images = build()
    half, _, _ = build(dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    logits, aux = half.apply(variables, images, return_aux=True)
    assert logits.dtype == jnp.float32 and aux.features.dtype == jnp.bfloat16
    np.testing.assert_allclose(logits, model.apply(variables, images), atol=0.05)


def test_remat_changes_memory_not_numbers():
    gradients = []
    for remat in (False, True):
        model, variables, images = build(remat=remat, method="life_regression", locations=(1, 2))
        loss = lambda v, model=model, images=images: model.apply(v, images, train=True).var()
        gradients.append(jax.jit(jax.grad(loss))(variables))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *gradients)


def test_non_square_images_and_recorded_tokens():
    model, variables, images = build(img_size=(12, 18))
    assert model.geometry.grid == (4, 6)
    _, aux = model.apply(variables, images, return_aux=True, record_tokens=True)
    assert [tokens.shape for tokens in aux.taps["tokens"]] == [(2, 24, 24)] * 3
    assert aux.kept == () and aux.scores is None and aux.token_counts == (24, 24, 24)


def test_no_head_gives_the_pooled_features():
    model, variables, images = build(num_classes=0)
    features, aux = model.apply(variables, images, return_aux=True)
    assert "head" not in variables["params"]
    np.testing.assert_array_equal(features, aux.features[:, 0])


def test_one_trace_serves_every_batch():
    model, variables, images = build(method="life_regression", locations=(1, 2))
    traces = []

    @jax.jit
    def forward(variables, images):
        traces.append(1)
        return model.apply(variables, images)

    for shift in range(3):
        forward(variables, images + shift)
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("deit_smal_patch16_224", {}, "did you mean 'deit_small_patch16_224'"),
        ("vit", {"method": "life"}, "unknown method 'life'"),
        ("vit", {"method": 3}, "method=3 must be"),
        ("vit", {"embed_dims": 3}, "unknown option .*'embed_dims'"),
        ("vit", {"img_size": 13, "patch_size": 3}, "image height 13 is not divisible by the patch size 3"),
        ("vit", {"embed_dim": 25, "num_heads": 2}, "embed_dim=25 is not divisible by num_heads=2"),
        ("vit", {"depth": 0}, "depth=0 must be"),
        ("vit", {"global_pool": "max"}, "unknown global_pool 'max'"),
        ("vit", {"attention": "flash"}, "unknown attention 'flash'"),
        ("vit", {"dtype": "float64"}, "unknown dtype 'float64'"),
        ("vit", {"dtype": "float33"}, "unknown dtype 'float33'"),
        ("vit", {"class_token": False}, "class_token=False needs global_pool='avg'"),
        ("vit", {"drop_path_rate": 1.0}, "drop_path_rate=1.0"),
        ("vit", {"img_size": "large"}, "img_size='large'"),
    ],
)
def test_bad_models_are_refused_in_one_line(name, options, message):
    with pytest.raises(slim.SlimError, match=message) as error:
        slim.create_model(name, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("shape", [(2, 12, 12, 1), (2, 12, 15, 3), (12, 12, 3), (2, 3, 12, 12)])
def test_images_of_another_shape_are_refused(shape):
    model, variables, _ = build()
    with pytest.raises(slim.SlimError, match=r"this model takes \(batch, 12, 12, 3\), NHWC"):
        model.apply(variables, jnp.zeros(shape))


def test_attention_backends_agree(monkeypatch):
    """Without a GPU, JAX's own attention stands in for its fused kernel: who calls it must mean the same by it."""
    called = []

    def fused(q, k, v, *, bias, implementation):
        called.append(implementation)
        implementation = implementation if jax.default_backend() == "gpu" else "xla"
        return plain(q, k, v, bias=bias, implementation=implementation)

    plain = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", fused)
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(2, 7, 3, 8)), jnp.bfloat16) for _ in range(3))
    weight = jnp.asarray(3 * rng.normal(size=(2, 7)), jnp.float32)
    for log_weight in (None, weight):
        ours, theirs = (attention(q, k, v, log_weight=log_weight, backend=name) for name in ("xla", "cudnn"))
        np.testing.assert_allclose(ours.astype(np.float32), theirs.astype(np.float32), atol=0.03)
    assert called == ["cudnn"] * 2
    model, variables, images = build(attention="cudnn", dtype="bfloat16")
    called.clear()
    expected = model.clone(attention="xla").apply(variables, images)
    np.testing.assert_allclose(model.apply(variables, images), expected, atol=0.03 * np.abs(expected).max())
    assert len(called) == model.depth
