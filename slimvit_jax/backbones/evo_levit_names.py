"""The state dict of Evo-LeViT's release, which numbers layers through all stages and holds every block twice."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

#: ours within a block or a subsampling layer -> theirs within an attention or an MLP
_ATTENTION = {
    "qkv.linear": "qkv.c",
    "qkv.bn": "qkv.bn",
    "kv.linear": "kv.c",
    "kv.bn": "kv.bn",
    "q.ln.linear": "q.1.c",
    "q.ln.bn": "q.1.bn",
    "proj.ln.linear": "proj.1.c",
    "proj.ln.bn": "proj.1.bn",
}
_MLP = {"ln1.linear": "m.0.c", "ln1.bn": "m.0.bn", "ln2.linear": "m.2.c", "ln2.bn": "m.2.bn"}


def _swap(name: str, table: Mapping[str, str]) -> str:
    for ours, theirs in table.items():
        if name.startswith(ours + "."):
            return theirs + name.removeprefix(ours)
    return name


def _places(depths: Sequence[int], pruned: Sequence[Sequence[int]]) -> dict[str, tuple[str, str]]:
    """Our prefix of every attention and MLP -> its two prefixes in the release."""
    places: dict[str, tuple[str, str]] = {}
    block = stage_block = 0
    for stage, (depth, late) in enumerate(zip(depths, pruned, strict=True)):
        if stage:
            ours = f"stages.{stage}.downsample"
            for part in ("attn_downsample", "mlp"):
                places[f"{ours}.{part}."] = (f"blocks.{block}.", f"stage_blocks.{stage_block}.")
                block, stage_block = block + 1, stage_block + 1
        member = 0
        for i in range(depth):
            for part, theirs, tail in (("attn", "m1", "m."), ("mlp", "m2", "")):
                if i in late:
                    second = f"stage_blocks.{stage_block}.m.{member}.{tail}"
                    member += 1
                else:
                    second = f"stage_blocks.{stage_block}.{tail}"
                    stage_block += 1
                places[f"stages.{stage}.blocks.{i}.{part}."] = (f"blocks.{block}.{theirs}.{tail}", second)
            block += 1
        stage_block += bool(late)
    return places


def _outside(name: str, back: bool) -> str:
    """Names of the stem and the heads."""
    if back:
        name = re.sub(r"^stem\.conv(\d+)\.", lambda m: f"patch_embed.{2 * int(m[1]) - 2}.", name)
        return re.sub(r"^(patch_embed\.\d+)\.linear\.", r"\1.c.", re.sub(r"^(head\w*)\.linear\.", r"\1.l.", name))
    name = re.sub(r"^patch_embed\.(\d+)\.", lambda m: f"stem.conv{int(m[1]) // 2 + 1}.", name)
    return re.sub(r"^(stem\.conv\d+)\.c\.", r"\1.linear.", re.sub(r"^(head\w*)\.l\.", r"\1.linear.", name))


def from_release(state: Mapping[str, Any], depths: Sequence[int]) -> dict[str, Any]:
    """Names of the release as ours; the repeated stage_blocks are left out, names without a counterpart stay.

    Args:
      state: the state dict.
      depths: layers per stage.
    """
    prefixes = {theirs: ours for ours, (theirs, _) in _places(depths, [()] * len(depths)).items()}
    renamed: dict[str, Any] = {}
    for name, value in state.items():
        if name.startswith("stage_blocks."):
            continue
        match = re.match(r"blocks\.\d+\.(m1\.m\.|m2\.)?", name)
        if match and match[0] in prefixes:
            ours, rest = prefixes[match[0]], name[match.end() :]
            table = _MLP if ours.endswith("mlp.") else _ATTENTION
            renamed[ours + _swap(rest, {theirs: mine for mine, theirs in table.items()})] = value
        else:
            renamed[_outside(name, back=False)] = value
    return renamed


def to_release(state: Mapping[str, Any], depths: Sequence[int], pruned: Sequence[Sequence[int]]) -> dict[str, Any]:
    """The inverse of `from_release`, with the repeated names.

    Args:
      state: under our names.
      depths: layers per stage.
      pruned: per stage the layers (from 0) that keep less than all patches; the release lists them together.
    """
    places, renamed = _places(depths, pruned), {}
    for name, value in state.items():
        match = re.match(r"stages\.\d+\.(blocks\.\d+|downsample)\.\w+\.", name)
        if match:
            rest = _swap(name[match.end() :], _MLP if match[0].endswith("mlp.") else _ATTENTION)
            for prefix in places[match[0]]:
                renamed[prefix + rest] = value
        else:
            renamed[_outside(name, back=True)] = value
    return renamed
