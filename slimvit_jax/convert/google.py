"""Reads the .npz layout of Google's original ViT weights (google-research/vision_transformer) under timm's names."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from slimvit_jax.errors import SlimError

_MARK = "embedding/kernel"
_PREFIXES = ("", "opt/target/", "params/")
_TOP = {
    "cls": "cls_token",
    "embedding/kernel": "patch_embed.proj.weight",
    "embedding/bias": "patch_embed.proj.bias",
    "Transformer/posembed_input/pos_embedding": "pos_embed",
    "Transformer/encoder_norm/scale": "norm.weight",
    "Transformer/encoder_norm/bias": "norm.bias",
    "head/kernel": "head.weight",
    "head/bias": "head.bias",
}
_BLOCK = {
    "LayerNorm_0/scale": "norm1.weight",
    "LayerNorm_0/bias": "norm1.bias",
    "LayerNorm_2/scale": "norm2.weight",
    "LayerNorm_2/bias": "norm2.bias",
    "MlpBlock_3/Dense_0/kernel": "mlp.fc1.weight",
    "MlpBlock_3/Dense_0/bias": "mlp.fc1.bias",
    "MlpBlock_3/Dense_1/kernel": "mlp.fc2.weight",
    "MlpBlock_3/Dense_1/bias": "mlp.fc2.bias",
    "MultiHeadDotProductAttention_1/out/kernel": "attn.proj.weight",
    "MultiHeadDotProductAttention_1/out/bias": "attn.proj.bias",
}
_QKV = re.compile(r"MultiHeadDotProductAttention_1/(query|key|value)/(kernel|bias)")


def is_google(names: Mapping[str, object]) -> bool:
    """Whether a file with these array names has Google's layout."""
    return any(prefix + _MARK in names for prefix in _PREFIXES)


def to_timm(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """timm name -> array in torch's layout; query, key and value become one qkv.

    A name that is not part of the layout (pre_logits of some in21k files) is kept as it is, for the caller to report.

    Raises:
      SlimError: a layer lacks one of query, key and value.
    """
    prefix = next(prefix for prefix in _PREFIXES if prefix + _MARK in arrays)
    state: dict[str, np.ndarray] = {}
    parts: dict[tuple[str, str], dict[str, np.ndarray]] = {}
    for full, array in arrays.items():
        name = full.removeprefix(prefix)
        block = re.fullmatch(r"Transformer/encoderblock_(\d+)/(.+)", name)
        if name in _TOP:
            state[_TOP[name]] = _layout(name, array)
        elif block and block[2] in _BLOCK:
            state[f"blocks.{block[1]}.{_BLOCK[block[2]]}"] = _layout(name, array)
        elif block and (qkv := _QKV.fullmatch(block[2])):
            # (D, heads, head_dim) or (heads, head_dim): heads are contiguous in timm's rows
            flat = array.reshape(array.shape[0], -1).T if qkv[2] == "kernel" else array.reshape(-1)
            parts.setdefault((block[1], qkv[2]), {})[qkv[1]] = flat
        else:
            state[full] = array
    for (index, leaf), three in parts.items():
        if len(three) != 3:
            raise SlimError(f"encoderblock_{index} has only {', '.join(three)} of query, key and value ({leaf})")
        name = f"blocks.{index}.attn.qkv.{'weight' if leaf == 'kernel' else 'bias'}"
        state[name] = np.concatenate([three["query"], three["key"], three["value"]])
    return state


def _layout(name: str, array: np.ndarray) -> np.ndarray:
    if not name.endswith("kernel"):
        return array
    if array.ndim == 4:
        return array.transpose(3, 2, 0, 1)
    return array.reshape(-1, array.shape[-1]).T  # attention's output kernel is (heads, head_dim, D)
