"""How many patches DiffRate leaves in every layer: published, given, or even."""

from __future__ import annotations

import functools
import importlib.resources
import json
from collections.abc import Sequence
from typing import Any

from slimvit_jax.errors import SlimError, unknown
from slimvit_jax.plan import Geometry

#: For every layer the patches that stay or merge, and of these the patches that stay.
Counts = tuple[tuple[int, int], ...]


@functools.cache
def presets() -> dict[str, Any]:
    """The published counts: model to {"dim", "depth", "patches", "counts": {GFLOPs: [prune_kept_num, merge_kept_num]}}.

    Data of compression_rate.json in OpenGVLab/DiffRate, whose CAFormer, no backbone here, is left out.
    """
    return json.loads(importlib.resources.files("slimvit_jax.methods").joinpath("diffrate.json").read_text("utf-8"))


def preset_counts(preset: str, geometry: Geometry) -> Counts:
    """Published counts for a model of this geometry.

    Raises:
      SlimError: there are none for its width, depth and number of patches, or none of this name.
    """
    shape = lambda of: f"width {of['dim']}, depth {of['depth']} and {of['patches']} patches"
    ours = {"dim": geometry.dim, "depth": geometry.depth, "patches": geometry.num_patches}
    choices: dict[str, Any] = {}
    for model, entry in presets().items():  # DeiT's before MAE's
        if all(entry[key] == value for key, value in ours.items()):
            family = model.split("_")[0]
            choices |= {f"{family}:{name}": counts for name, counts in entry["counts"].items()}
            choices |= {name: counts for name, counts in entry["counts"].items() if name not in choices}
    if not choices:
        known = dict.fromkeys("/".join(str(entry[key]) for key in ours) for entry in presets().values())
        raise SlimError(
            f"preset={preset!r}: counts are published for models of width/depth/patches {', '.join(known)};"
            f" this one has {shape(ours)}"
        )
    if preset not in choices:
        raise unknown(f"DiffRate preset for {shape(ours)}", preset, choices)
    prune, merged = choices[preset]
    return held(geometry.num_patches, prune, merged, 1)


def held(patches: int, prune: Sequence[int], merged: Sequence[int], class_token: int) -> Counts:
    """Counts with `class_token` class tokens in them to patches, each layer limited by what the one before leaves."""
    counts = []
    for p, m in zip(prune, merged, strict=True):
        stay_or_merge = min(p - class_token, patches)
        patches = min(m - class_token, stay_or_merge)
        counts.append((stay_or_merge, patches))
    return tuple(counts)


@functools.lru_cache(maxsize=256)
def even_counts(geometry: Geometry, rate: float) -> Counts:
    """The same number removed in every layer but the first, half of it dropped and half merged."""
    n, depth = geometry.num_patches, geometry.depth

    def left(slope: float) -> list[int]:
        return [max(1, round(n - slope * layer)) for layer in range(depth)]

    slopes = (n * step / 2000 for step in range(2001))
    counts = min(map(left, slopes), key=lambda c: abs(sum(c) - rate * n * depth))
    return tuple((m + (before - m) // 2, m) for before, m in zip((n, *counts), counts, strict=False))
