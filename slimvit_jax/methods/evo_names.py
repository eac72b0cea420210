"""State dicts of releases that lay a block out differently from timm, to timm's layout and back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from slimvit_jax.arrays import as_numpy

_PARTS = ("weight", "bias")
#: Evo-ViT keeps these outside of its blocks: module within timm's block -> list of the release.
_OUTSIDE = {"norm1": "norms", "attn.proj": "projs"}


def join_attention(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """Evo-ViT's names (norms.i, qks.i.qk, vs.i.v, projs.i) as timm's (blocks.i.norm1, blocks.i.attn.{qkv,proj}).

    A state dict without any "qks." is returned as it is. Names without a counterpart stay, for the caller to report.
    """
    joined = dict(state)
    for i in {match[1] for name in state if (match := re.match(r"qks\.(\d+)\.", name))}:
        for part in _PARTS:
            for module, theirs in _OUTSIDE.items():
                if f"{theirs}.{i}.{part}" in joined:
                    joined[f"blocks.{i}.{module}.{part}"] = joined.pop(f"{theirs}.{i}.{part}")
            names = (f"qks.{i}.qk.{part}", f"vs.{i}.v.{part}")
            if all(name in joined for name in names):
                parts = [as_numpy(name, joined.pop(name)) for name in names]
                joined[f"blocks.{i}.attn.qkv.{part}"] = np.concatenate(parts)
    return joined


def split_attention(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse of `join_attention`, for a complete state dict under timm's names."""
    split: dict[str, np.ndarray] = {}
    for name, value in state.items():
        match = re.fullmatch(r"blocks\.(\d+)\.(norm1|attn\.proj|attn\.qkv)\.(weight|bias)", name)
        if match is None:
            split[name] = value
        elif match[2] in _OUTSIDE:
            split[f"{_OUTSIDE[match[2]]}.{match[1]}.{match[3]}"] = value
        else:
            third = value.shape[0] // 3
            split[f"qks.{match[1]}.qk.{match[3]}"] = np.ascontiguousarray(value[: 2 * third])
            split[f"vs.{match[1]}.v.{match[3]}"] = np.ascontiguousarray(value[2 * third :])
    return split
