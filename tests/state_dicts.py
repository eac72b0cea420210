"""State dicts: random ones of small models under timm's names, and the same under those of transformers."""

import numpy as np

import slimvit_jax as slim
from slimvit_jax.convert import rules

TINY = {"img_size": 28, "patch_size": 7, "embed_dim": 12, "depth": 3, "num_heads": 3, "num_classes": 5}
_BLOCK = {  # timm's name in a block -> transformers' for ViT and DeiT, Dinov2, CLIP and SigLIP
    "norm1": ("layernorm_before", "norm1", "layer_norm1"),
    "norm2": ("layernorm_after", "norm2", "layer_norm2"),
    "attn.q": ("attention.attention.query", "attention.attention.query", "self_attn.q_proj"),
    "attn.k": ("attention.attention.key", "attention.attention.key", "self_attn.k_proj"),
    "attn.v": ("attention.attention.value", "attention.attention.value", "self_attn.v_proj"),
    "attn.proj": ("attention.output.dense", "attention.output.dense", "self_attn.out_proj"),
    "mlp.fc1": ("intermediate.dense", "mlp.fc1", "mlp.fc1"),
    "mlp.fc2": ("output.dense", "mlp.fc2", "mlp.fc2"),
}


def build(family="vit", **options):
    return slim.create_model(family, **(TINY | options))


def random_state(model, seed=0):
    rng = np.random.default_rng(seed)
    return {
        name: rng.standard_normal(leaf.torch_shape).astype(np.float32) for name, leaf in rules.expected(model).items()
    }


def assert_equal_states(got, want):
    assert got.keys() == want.keys()
    for name, array in want.items():
        assert got[name].dtype == array.dtype and np.array_equal(got[name], array), name


def of_transformers(state, kind):
    """A timm state dict under the names of transformers' vit (0), dinov2 (1) or clip (2)."""
    outer = [
        {"cls_token": "vit.embeddings.cls_token", "pos_embed": "vit.embeddings.position_embeddings"},
        {"cls_token": "dinov2.embeddings.cls_token", "pos_embed": "dinov2.embeddings.position_embeddings"},
        {"pos_embed": "vision_model.embeddings.position_embedding.weight"},
    ][kind]
    outer["dist_token"] = "vit.embeddings.distillation_token"
    start = ("vit.", "dinov2.", "vision_model.")[kind]
    projection = "embeddings.patch_embedding" if kind == 2 else "embeddings.patch_embeddings.projection"
    modules = {"patch_embed.proj": start + projection, "norm_pre": "vision_model.pre_layrnorm"}
    modules["norm"] = start + ("post_layernorm" if kind == 2 else "layernorm")
    modules |= {"head": "classifier", "head_dist": "distillation_classifier"}
    names = {}
    for name, array in state.items():
        module, _, leaf = name.rpartition(".")
        if name in outer:
            names[outer[name]] = array[0] if kind == 2 else array
        elif name == "cls_token":
            names["vision_model.embeddings.class_embedding"] = array[0, 0]
        elif module in modules:
            names[f"{modules[module]}.{leaf}"] = array
        elif name.startswith("attn_pool."):
            continue
        else:
            _, layer, inner = module.split(".", 2)
            theirs = f"{start}encoder.layer{'s' if kind == 2 else ''}.{layer}."
            if leaf == "gamma":
                names[f"{theirs}layer_scale{inner[-1]}.lambda1"] = array
            elif inner == "attn.qkv":
                for part, rows in zip("qkv", np.split(array, 3), strict=True):
                    names[f"{theirs}{_BLOCK['attn.' + part][kind]}.{leaf}"] = rows
            else:
                names[f"{theirs}{_BLOCK[inner][kind]}.{leaf}"] = array
    return names
