"""What a set of weights looks like, judged by names and shapes alone: for error messages."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from slimvit_jax.models import NAMED

Shapes = Mapping[str, tuple[int, ...]]
_FAMILIES = {"ViT": "vit", "distilled ViT": "deit_distilled", "LV-ViT": "lvvit", "LeViT": "levit"}


def facts(shapes: Shapes) -> dict[str, object]:
    """Family, width, depth, patch size and input channels of the model these arrays belong to, as far as they show."""
    found: dict[str, object] = {}
    blocks = [int(match[1]) for name in shapes if (match := re.match(r"blocks\.(\d+)\.", name))]
    if any(name.startswith("stages.") for name in shapes) and "stem.conv1.linear.weight" in shapes:
        found["family"] = "LeViT"
    elif "patch_embed.conv1.weight" in shapes:
        found["family"] = "LV-ViT"
    elif "dist_token" in shapes:
        found["family"] = "distilled ViT"
    elif blocks and "patch_embed.proj.weight" in shapes:
        found["family"] = "ViT"
    for name in ("norm.weight", "fc_norm.weight", "cls_token", "pos_embed"):
        if shapes.get(name):
            found["embed_dim"] = shapes[name][-1]
            break
    if blocks:
        found["depth"] = max(blocks) + 1
    if found.get("family") == "LeViT":
        pattern = re.compile(r"stages\.(\d+)\.blocks\.(\d+)\.mlp\.ln2\.linear\.weight")
        layers = [match for name in sorted(shapes) if (match := pattern.fullmatch(name))]
        found["embed_dim"] = tuple(shapes[layer.string][0] for layer in layers if layer[2] == "0")
        found["depth"] = tuple(len([1 for layer in layers if layer[1] == n]) for n in sorted({m[1] for m in layers}))
    proj = shapes.get("patch_embed.proj.weight", ())
    if len(proj) == 4:
        found["patch_size"], found["in_chans"] = proj[2], proj[1]
    if "reg_token" in shapes:
        found["reg_tokens"] = shapes["reg_token"][1]
    return found


def phrase(found: Mapping[str, Any]) -> str:
    """`facts` in words, with up to three named models of those sizes."""
    if "family" not in found:
        return "no vision transformer known here"
    rest = ", ".join(f"{key} {value}" for key, value in found.items() if key != "family")
    sizes = [key for key in ("embed_dim", "depth", "patch_size") if key in found]
    same = [
        name
        for name, model in NAMED.items()
        if model.family == _FAMILIES[found["family"]]
        and model.method is None
        and all(model.kwargs[size] == found[size] for size in sizes)
        and model.kwargs.get("reg_tokens", 0) == found.get("reg_tokens", 0)
    ]
    like = f", as in {', '.join(same[:3])}" if same else ""
    return f"a {found['family']} with {rest}{like}"
