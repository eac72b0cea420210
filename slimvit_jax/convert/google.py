"""Reads the .npz layouts of Google's ViT weights under timm's names: google-research/vision_transformer and big_vision.

big_vision (models/vit.py there) numbers the parts of a block otherwise, keeps positions at the top, may hold the layers
of a scan in one array each, and has an attention pooling head (MAPHead). Of a pair of image and text (SigLIP) only the
image's part is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from slimvit_jax.errors import SlimError

_MARK = "embedding/kernel"
_PREFIXES = ("", "opt/target/", "params/", "params/img/")  # the last: big_vision's pairs of image and text
TOP = {
    "cls": "cls_token",
    "pos_embedding": "pos_embed",
    "embedding/kernel": "patch_embed.proj.weight",
    "embedding/bias": "patch_embed.proj.bias",
    "Transformer/posembed_input/pos_embedding": "pos_embed",
    "Transformer/encoder_norm/scale": "norm.weight",
    "Transformer/encoder_norm/bias": "norm.bias",
    "head/kernel": "head.weight",
    "head/bias": "head.bias",
}
BLOCK = {
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
_POOL = {
    "probe": "latent",
    "LayerNorm_0/scale": "norm.weight",
    "LayerNorm_0/bias": "norm.bias",
    "MlpBlock_0/Dense_0/kernel": "mlp.fc1.weight",
    "MlpBlock_0/Dense_0/bias": "mlp.fc1.bias",
    "MlpBlock_0/Dense_1/kernel": "mlp.fc2.weight",
    "MlpBlock_0/Dense_1/bias": "mlp.fc2.bias",
    "MultiHeadDotProductAttention_0/out/kernel": "proj.weight",
    "MultiHeadDotProductAttention_0/out/bias": "proj.bias",
}
#: Parts of a block in big_vision -> in the older layout.
_OLDER = {
    "LayerNorm_1/": "LayerNorm_2/",
    "MlpBlock_0/": "MlpBlock_3/",
    "MultiHeadDotProductAttention_0/": "MultiHeadDotProductAttention_1/",
}
_BLOCK_NAME = re.compile(r"Transformer/encoderblock_(\d+)/(.+)")
_QKV = re.compile(r"MultiHeadDotProductAttention_\d/(query|key|value)/(kernel|bias)")


def is_google(names: Mapping[str, object]) -> bool:
    """Whether a file with these array names has Google's layout."""
    return any(prefix + _MARK in names for prefix in _PREFIXES)


def to_timm(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """timm name -> array in torch's layout; query, key and value become one qkv, of a pooling head q and kv.

    A name that is not part of the layout (pre_logits of some in21k files) is kept as it is, for the caller to report.

    Raises:
      SlimError: a layer lacks one of query, key and value.
    """
    prefix = next(prefix for prefix in _PREFIXES if prefix + _MARK in arrays)
    state: dict[str, Any] = {}
    parts: dict[tuple[str, str], dict[str, np.ndarray]] = {}
    for full, array in arrays.items():
        if prefix == "params/img/" and (full.startswith("params/txt/") or full in ("params/t", "params/b")):
            continue
        for name, value in _layers(full.removeprefix(prefix), array):
            block = _BLOCK_NAME.fullmatch(name)
            inner = _older(block[2]) if block else name.removeprefix("MAPHead_0/")
            place = f"blocks.{block[1]}." if block else "attn_pool."
            if name in TOP:
                state[TOP[name]] = _layout(name, value)
            elif block and inner in BLOCK:
                state[place + BLOCK[inner]] = _layout(name, value)
            elif inner != name and (qkv := _QKV.fullmatch(inner)):
                # (D, heads, head_dim) or (heads, head_dim): heads are contiguous in timm's rows
                flat = value.reshape(value.shape[0], -1).T if qkv[2] == "kernel" else value.reshape(-1)
                parts.setdefault((place, qkv[2]), {})[qkv[1]] = flat
            elif not block and inner != name and inner in _POOL:
                state[place + _POOL[inner]] = _layout(name, value)
            else:
                state[full] = array
    for (place, leaf), three in parts.items():
        if len(three) != 3:
            raise SlimError(f"{place.rstrip('.')} has only {', '.join(three)} of query, key and value ({leaf})")
        end = "weight" if leaf == "kernel" else "bias"
        if place == "attn_pool.":
            state[f"{place}q.{end}"] = three["query"]
            state[f"{place}kv.{end}"] = np.concatenate([three["key"], three["value"]])
        else:
            state[f"{place}attn.qkv.{end}"] = np.concatenate([three["query"], three["key"], three["value"]])
    return state


def _layers(name: str, array: Any) -> Iterator[tuple[str, Any]]:
    """The array under its name, or, for the layers of a scan in one array, each of them under its own."""
    scanned = "Transformer/encoderblock/"
    if not name.startswith(scanned):
        yield name, array
        return
    for layer, part in enumerate(array):
        yield f"Transformer/encoderblock_{layer}/{name.removeprefix(scanned)}", part


def _older(inner: str) -> str:
    for theirs, ours in _OLDER.items():
        if inner.startswith(theirs):
            return ours + inner.removeprefix(theirs)
    return inner


def _layout(name: str, array: np.ndarray) -> np.ndarray:
    if not name.endswith("kernel"):
        return array
    if array.ndim == 4:
        return array.transpose(3, 2, 0, 1)
    return array.reshape(-1, array.shape[-1]).T  # attention's output kernel is (heads, head_dim, D)
