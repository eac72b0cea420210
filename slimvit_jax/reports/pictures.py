"""From a model and what it gave for some images to the pictures of visualize.py and patches.py."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from slimvit_jax.inference.evaluate import Outputs
from slimvit_jax.reports import patches, visualize


def picture_lives(
    path: str | Path,
    model: Any,
    outputs: Outputs,
    pixels: Sequence[np.ndarray] | np.ndarray,
    titles: Sequence[str] = (),
) -> Path:
    """Draws images, their lives (or scores), and what is kept after each drop.

    Args:
      path: the file to write.
      model: from create_model.
      outputs: of the batch (evaluate.Inference).
      pixels: the images as the model saw them, (H, W, C) uint8 each, before normalising.
      titles: one per image.
    """
    scores = None if outputs.scores is None else np.asarray(outputs.scores)
    return patches.draw_lives(
        path,
        pixels,
        grid=model.geometry.grid,
        kept=[np.asarray(index) for index in outputs.kept or ()],
        lives=scores,
        life_range=model.slim.score_range,
        token_counts=model.slim.plan.token_counts,
        titles=titles,
        score_name=model.slim.score_name,
    )


def picture_weights(path: str | Path, model: Any, lives: np.ndarray | None = None) -> Path:
    """Draws the weight curves of a model that predicts lives, with the lives (..., N) of real patches if given."""
    slim = model.slim
    rates = slim.trained_rates or ((),)
    budgets = [slim.clone(keep_rate=rate) if rate else slim for rate in rates]
    return visualize.draw_weight_curves(
        path,
        depth=model.geometry.depth,
        life=min(5.0, (1 + model.geometry.depth) / 2),
        lives=lives,
        temperature=slim.temperature,
        token_counts=slim.plan.token_counts,
        masked=[one.plan.token_counts for one in budgets] if slim.hard else (),
    )


def picture_groups(
    path: str | Path,
    model: Any,
    variables: Any,
    images: np.ndarray,
    pixels: Sequence[np.ndarray] | np.ndarray,
    titles: Sequence[str] = (),
) -> Path | None:
    """Draws which patches a method that merges made one token; None where its `aux.taps` do not tell.

    Args:
      path: the file to write.
      model, variables: as of `apply`.
      images: (B, H, W, C) float32, prepared for the model.
      pixels, titles: as of `picture_lives`.
    """
    forward = jax.jit(functools.partial(model.apply, return_aux=True))
    groups = groups_of(forward(variables, images)[1].taps, model.geometry.prefix_tokens)
    return patches.draw_groups(path, pixels, grid=model.geometry.grid, groups=groups, titles=titles) if groups else None


def groups_of(taps: Mapping[str, Any], prefix: int = 1) -> list[np.ndarray]:
    """(B, N) per merge: the number of the token that each patch is part of, most of all; -1: of none.

    Args:
      taps: of a forward pass; read are "owner" (B, P + N), the last token that each original one is part of, -1 where
        it was dropped; without it "owners", the same after every merge; "clusters", (B, n) per merge, the new token of
        each; "assignment" (B, k, n) or "assignments" (B, n, k) per merge, the shares of the old tokens in the new ones.
      prefix: P.

    Returns:
      [] where nothing tells.
    """
    if "owner" in taps:
        return [np.asarray(taps["owner"])[:, prefix:]]
    if "owners" in taps:
        return [np.asarray(owner)[:, prefix:] for owner in taps["owners"]]
    groups: list[np.ndarray] = []
    for clusters in map(np.asarray, taps.get("clusters", ())):
        groups.append(np.take_along_axis(clusters, groups[-1], axis=1) if groups else clusters)
    steps = [np.asarray(a) for a in taps.get("assignment", ())]
    steps = steps or [np.asarray(a).swapaxes(1, 2) for a in taps.get("assignments", ())]  # (B, new, old)
    whole = None
    for step in steps:
        whole = step if whole is None else step @ whole
        groups.append(whole.argmax(axis=1))
    return groups
