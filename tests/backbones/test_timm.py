"""Live parity with timm at random weights: every named model, every option of the ViT family."""

import jax
import numpy as np
import pytest
from timm_reference import calibrated, logits, reference, timm, torch

import slimvit_jax as slim
from slimvit_jax.backbones import eva_names, vit_names
from slimvit_jax.convert import from_torch, resample_pos_embed, rules
from slimvit_jax.models import NAMED

TOLERANCE = 1e-4
TINY = {"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 10}
GRIDS = [((14, 14), (24, 24)), ((24, 24), (14, 14)), ((37, 37), (16, 9)), ((4, 6), (9, 3))]


def images_for(model, batch=1):
    return np.random.default_rng(1).standard_normal((batch, *model.img_size, model.in_chans)).astype(np.float32)


def assert_same_logits(torch_model, model):
    images = images_for(model)
    want = logits(torch_model, images)
    got = jax.jit(model.apply)(from_torch(model, torch_model.state_dict()), images)
    assert np.abs(want).max() > 0.1
    assert got.shape == want.shape
    assert np.abs(np.asarray(got) - want).max() < TOLERANCE


ON_TIMM = [name for name in NAMED if NAMED[name].hub]
PLAIN = ("vit", "deit_distilled")
#: One of each architecture; the others differ in size only.
ENCODERS = (
    "vit_base_patch16_siglip_224",
    "vit_base_patch16_siglip_gap_224",
    "vit_so400m_patch16_siglip_256",
    "vit_base_patch16_clip_224",
    "vit_base_patch16_clip_quickgelu_224",
    "vit_giant_patch14_dinov2",
    "vit_small_patch16_dinov3",
    "vit_small_plus_patch16_dinov3_qkvb",
    "eva02_tiny_patch14_224",
    "eva02_base_patch14_448",
    "eva02_base_patch16_clip_224",
)
OTHERS = {row[0] for names in (vit_names, eva_names) for row in names.encoders()}
VITS = [name for name in ON_TIMM if NAMED[name].family in PLAIN and name not in OTHERS]


@pytest.mark.parametrize("name", ON_TIMM)
def test_named_model_has_timms_parameters(name):
    """Names and shapes at full size; neither side computes anything. The layers of a ViT are alike: one is compared."""
    alike = NAMED[name].family in (*PLAIN, "eva")
    with torch.device("meta"):
        theirs = timm.create_model(name)
    want = {key: tuple(value.shape) for key, value in theirs.state_dict().items()}
    want = {key: shape for key, shape in want.items() if not key.endswith(rules.COUNTER)}
    if alike:
        ours = slim.create_model(name, depth=1)
        assert len(theirs.blocks) == NAMED[name].kwargs["depth"]
        assert theirs.blocks[0].norm1.eps == ours.eps and theirs.blocks[0].attn.num_heads == ours.num_heads
        activation = {"GELU": "gelu", "GELUTanh": "gelu_tanh", "QuickGELU": "quick_gelu", "SiLU": "silu"}
        assert activation[type(theirs.blocks[0].mlp.act).__name__] == ours.block_options["activation"]
        want = {key: shape for key, shape in want.items() if not key.startswith("blocks.") or "blocks.0." in key}
    else:
        ours = slim.create_model(name)
    assert {key: leaf.torch_shape for key, leaf in rules.expected(ours).items()} == want


@pytest.mark.parametrize("name", ON_TIMM)
def test_named_model_has_timms_preprocessing(name):
    config, ours = timm.models.get_pretrained_cfg(name), slim.transform_for(name)
    assert (ours.mean, ours.std, ours.crop_pct) == (config.mean, config.std, config.crop_pct)
    assert (ours.interpolation, (3, *ours.size)) == (config.interpolation, config.input_size)
    assert ours.crop_mode == config.crop_mode
    assert NAMED[name].hub == config.hf_hub_id
    assert NAMED[name].kwargs["num_classes"] == config.num_classes


@pytest.mark.parametrize("name", VITS)
def test_named_model_computes_what_timm_computes(name):
    """At the model's own width, heads and image size; one layer, as they are alike."""
    assert_same_logits(reference(name, depth=1), slim.create_model(name, depth=1))


@pytest.mark.parametrize("name", ENCODERS)
def test_encoder_computes_what_timm_computes(name):
    """At the encoder's own width, with a classifier and a few patches, on another grid than that of its pretraining."""
    patch = NAMED[name].kwargs["patch_size"]
    options = {"depth": 1, "num_classes": 10, "img_size": (4 * patch, 6 * patch)}
    assert_same_logits(reference(name, **options), slim.create_model(name, **options))


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"])
def test_full_depth(name):
    assert_same_logits(reference(name), slim.create_model(name))


@pytest.mark.parametrize("name", ["levit_128s", "levit_256"])
def test_levit_at_full_size(name):
    """Whole, at 224 pixels."""
    model = slim.create_model(name)
    theirs = calibrated(reference(name), images_for(model, batch=4))
    assert_same_logits(theirs, model)


OPTIONS = {
    "not square": {"img_size": (32, 64)},
    "rectangular patches": {"img_size": (32, 64), "patch_size": (8, 16)},
    "average pooling": {"global_pool": "avg"},
    "average pooling, no class token": {"global_pool": "avg", "class_token": False},
    "average pooling, norm before": {"global_pool": "avg", "fc_norm": False},
    "class token, norm after": {"fc_norm": True},
    "registers": {"reg_tokens": 3},
    "registers, positions on patches": {"reg_tokens": 3, "no_embed_class": True},
    "registers, average pooling": {"reg_tokens": 2, "global_pool": "avg"},
    "layer scale": {"init_values": 0.1},
    "qk norm": {"qk_norm": True},
    "no qkv bias": {"qkv_bias": False},
    "pre norm": {"pre_norm": True},
    "no head": {"num_classes": 0},
    "attention pooling": {"global_pool": "map"},
    "attention pooling of all tokens": {"global_pool": "map", "pool_include_prefix": True},
    "average of all tokens": {"global_pool": "avg", "pool_include_prefix": True, "reg_tokens": 2},
    "grey images": {"in_chans": 1},
    "narrow mlp": {"mlp_ratio": 1.5},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options_of_the_family(options):
    options = TINY | {"img_size": 32} | options
    assert_same_logits(reference("vit_tiny_patch16_224", **options), slim.create_model("vit", **options))


@pytest.mark.parametrize("prefix", [0, 1, 5])
@pytest.mark.parametrize("old, new", GRIDS)
def test_resampled_positions(prefix, old, new):
    value = np.random.default_rng(0).standard_normal((1, prefix + old[0] * old[1], 8)).astype(np.float32)
    want = timm.layers.resample_abs_pos_embed(torch.from_numpy(value), new, old, num_prefix_tokens=prefix).numpy()
    assert np.abs(resample_pos_embed(value, new, prefix, old) - want).max() < 1e-5


@pytest.mark.parametrize("extra", [{}, {"reg_tokens": 4, "no_embed_class": True}], ids=["class", "registers"])
@pytest.mark.parametrize("size", [64, (32, 96)], ids=str)
def test_weights_of_another_image_size(extra, size):
    """The same state dict, moved to another size by timm and by us."""
    options = TINY | extra
    state = reference("vit_tiny_patch16_224", img_size=32, **options).state_dict()
    other = timm.create_model("vit_tiny_patch16_224", img_size=size, **options).eval()
    other.load_state_dict(timm.models.vision_transformer.checkpoint_filter_fn(dict(state), other))
    model = slim.create_model("vit", img_size=size, **options)
    images = images_for(model)
    got = jax.jit(model.apply)(from_torch(model, state, resample_pos_embed=True), images)
    assert np.abs(np.asarray(got) - logits(other, images)).max() < TOLERANCE


def test_weights_written_here_load_in_timm(tmp_path):
    options = TINY | {"img_size": 32}
    model = slim.create_model("vit", **options)
    images = images_for(model)
    variables = jax.jit(model.init)(jax.random.key(0), images)
    ours = np.asarray(jax.jit(model.apply)(variables, images))
    for kind in ("safetensors", "pth"):
        slim.convert.save(model, variables, tmp_path / f"weights.{kind}")
        theirs = timm.create_model(
            "vit_tiny_patch16_224", checkpoint_path=str(tmp_path / f"weights.{kind}"), **options
        ).eval()
        assert np.abs(logits(theirs, images) - ours).max() < TOLERANCE
