"""Reads the names of Hugging Face's transformers (ViT, DeiT, Dinov2, DINOv3, CLIP, SigLIP) under timm's names.

Written from the parameter names of the modules in transformers (models/vit, deit, dinov2, dinov2_with_registers,
dinov3_vit, clip, siglip, siglip2), both as files have them and as transformers 5 names them in memory (`state_dict()`).
Where timm keeps a value otherwise than transformers, timm's form is the result:
  * query, key and value are one matrix qkv, DINOv3's biases of two of them q_bias and v_bias; of SigLIP's pooling head,
    key and value are one matrix kv;
  * CLIP's and SigLIP's position embeddings get the leading axis of 1, CLIP's class embedding two;
  * CLIP's projection becomes the classifier, with a bias of zeros;
  * of a model with registers, whose positions cover the class token but not the registers, the class token's position
    is added to it.
A name that is not part of the layout is kept as it is, for the caller to report. Left out: what only masked image
modelling reads (the mask token) and, of a pair of image and text, all that belongs to the text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from slimvit_jax.arrays import as_numpy
from slimvit_jax.errors import SlimError

#: The name that gives a layout away, behind any prefix ("vit.", "dinov2.", "vision_model.").
_MARKS = (
    "embeddings.patch_embeddings.projection.weight",
    "embeddings.patch_embedding.weight",
    "embeddings.patch_embeddings.weight",
)

_TOP = {
    "embeddings.cls_token": "cls_token",
    "embeddings.class_embedding": "cls_token",
    "embeddings.distillation_token": "dist_token",
    "embeddings.register_tokens": "reg_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.position_embedding.weight": "pos_embed",
    "head.probe": "attn_pool.latent",
}
_MODULES = {
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "embeddings.patch_embedding": "patch_embed.proj",
    "embeddings.patch_embeddings": "patch_embed.proj",
    "pre_layrnorm": "norm_pre",  # spelled so in transformers
    "layernorm": "norm",
    "norm": "norm",
    "post_layernorm": "norm",
    "head.attention.out_proj": "attn_pool.proj",
    "head.layernorm": "attn_pool.norm",
    "head.mlp.fc1": "attn_pool.mlp.fc1",
    "head.mlp.fc2": "attn_pool.mlp.fc2",
}
_HEADS = {
    "classifier": "head",
    "cls_classifier": "head",
    "distillation_classifier": "head_dist",
}
_BLOCK_MODULES = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "layer_norm1": "norm1",
    "layer_norm2": "norm2",
    "norm1": "norm1",
    "norm2": "norm2",
    "attention.output.dense": "attn.proj",
    "attention.o_proj": "attn.proj",
    "self_attn.out_proj": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "mlp.weights_in": "mlp.fc1",
    "mlp.weights_out": "mlp.fc2",
    "mlp.up_proj": "mlp.fc1",
    "mlp.down_proj": "mlp.fc2",
}
_BLOCK_VALUES = {"layer_scale1.lambda1": "ls1.gamma", "layer_scale2.lambda1": "ls2.gamma"}
#: What DINOv3 has otherwise in timm (models/eva.py): gains, and MLPs with a gate.
_DINOV3_VALUES = {"layer_scale1.lambda1": "gamma_1", "layer_scale2.lambda1": "gamma_2"}
_GATED = {"mlp.gate_proj": "mlp.fc1_g", "mlp.up_proj": "mlp.fc1_x"}
_BLOCK = re.compile(r"(?:encoder\.|model\.)?layers?\.(\d+)\.(.+)")
_QKV = re.compile(r"(?:attention\.attention\.(query|key|value)|(?:self_attn|attention)\.([qkv])_proj)\.(weight|bias)")
_LEFT_OUT = re.compile(
    r"embeddings\.(mask_token|position_ids)|text_model\..+|text_projection\.weight|logit_scale|logit_bias"
)


def is_huggingface(names: Mapping[str, object]) -> bool:
    """Whether a state dict with these names is one of transformers."""
    return _mark(names) is not None


def to_timm(state: Mapping[str, Any]) -> dict[str, Any]:
    """timm name -> array.

    Raises:
      SlimError: a layer lacks one of query, key and value.
    """
    mark = _mark(state)
    assert mark is not None
    prefix = mark.removesuffix(next(m for m in _MARKS if mark.endswith(m)))
    dinov3 = mark.endswith(_MARKS[2])
    values = _DINOV3_VALUES if dinov3 else _BLOCK_VALUES
    modules = _BLOCK_MODULES | (_GATED if any("mlp.gate_proj." in name for name in state) else {})
    root = re.sub(r"[^.]+\.$", "", prefix)  # the heads' prefix: that of the whole model, without the part's own
    found: dict[str, Any] = {}
    parts: dict[tuple[str, str], dict[str, Any]] = {}
    for full, value in state.items():
        name = full.removeprefix(prefix) if full.startswith(prefix) else full.removeprefix(root)
        module, _, leaf = name.rpartition(".")
        block = _BLOCK.fullmatch(name)
        if _LEFT_OUT.fullmatch(name):
            continue
        if module in _HEADS:
            found[f"{_HEADS[module]}.{leaf}"] = value
        elif name == "visual_projection.weight":
            found["head.weight"], found["head.bias"] = value, np.zeros(value.shape[0], np.float32)
        elif block and (three := _QKV.fullmatch(block[2])):
            parts.setdefault((block[1], three[3]), {})[(three[1] or three[2])[0]] = value
        elif block and block[2] in values:
            found[f"blocks.{block[1]}.{values[block[2]]}"] = value
        elif block and (inner := modules.get(block[2].rpartition(".")[0])):
            found[f"blocks.{block[1]}.{inner}.{leaf}"] = value
        elif name in _TOP:
            found[_TOP[name]] = value
        elif module in _MODULES:
            found[f"{_MODULES[module]}.{leaf}"] = value
        elif name in ("head.attention.in_proj_weight", "head.attention.in_proj_bias"):
            leaf = name.rpartition("_")[2]
            query, key_value = np.split(as_numpy(full, value), [value.shape[0] // 3])
            found[f"attn_pool.q.{leaf}"], found[f"attn_pool.kv.{leaf}"] = query, key_value
        else:
            found[name] = value
    for (index, leaf), three_parts in parts.items():
        if dinov3 and leaf == "bias" and three_parts.keys() == {"q", "v"}:
            found |= {f"blocks.{index}.attn.{part}_bias": value for part, value in three_parts.items()}
            continue
        if len(three_parts) != 3:
            raise SlimError(f"layer {index} has only {', '.join(sorted(three_parts))} of q, k and v ({leaf})")
        name = f"blocks.{index}.attn.qkv.{leaf}"
        found[name] = np.concatenate([as_numpy(name, three_parts[part]) for part in "qkv"])
    return _shapes(found)


def _mark(names: Mapping[str, object]) -> str | None:
    found = [name for name in names if isinstance(name, str) and name.endswith(_MARKS)]
    return min(found, key=len) if found else None


def _shapes(state: dict[str, Any]) -> dict[str, Any]:
    """Values in the shapes that timm gives them."""
    kernel = state.get("patch_embed.proj.weight")
    if kernel is not None and kernel.ndim == 2:  # SigLIP 2's linear layer over a patch's pixels, RGB last
        side = math.isqrt(kernel.shape[1] // 3)
        array = as_numpy("patch_embed.proj.weight", kernel).reshape(-1, side, side, 3)
        state["patch_embed.proj.weight"] = np.ascontiguousarray(array.transpose(0, 3, 1, 2))
    for name in ("cls_token", "pos_embed"):
        if name in state:
            value = state[name]
            state[name] = value.reshape((1,) * (3 - value.ndim) + tuple(value.shape))
    if "reg_token" in state and "pos_embed" in state and "cls_token" in state:
        fold_class_position(state)
    return state


def fold_class_position(state: dict[str, Any]) -> None:
    """Adds the first position to the class token and takes it off the positions, in place."""
    positions = as_numpy("pos_embed", state["pos_embed"])
    state["cls_token"] = as_numpy("cls_token", state["cls_token"]) + positions[:, :1]
    state["pos_embed"] = positions[:, 1:]
