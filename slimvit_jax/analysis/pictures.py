"""From a model and what it gave for some images to the pictures of visualize.py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from slimvit_jax.analysis import visualize
from slimvit_jax.analysis.evaluate import Outputs


def life_range(model: Any) -> tuple[float, float] | None:
    """(t_base, T), to which the paper clamps the lives it shows; None for scores that are no lives."""
    return (float(model.slim.base), float(model.geometry.depth)) if model.slim.method == "life_regression" else None


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
    return visualize.draw_lives(
        path,
        pixels,
        grid=model.geometry.grid,
        kept=[np.asarray(index) for index in outputs.kept or ()],
        lives=scores,
        life_range=life_range(model),
        token_counts=model.slim.plan.token_counts,
        titles=titles,
        score_name="life" if model.slim.method == "life_regression" else "score",
    )


def picture_weights(path: str | Path, model: Any, lives: np.ndarray | None = None) -> Path:
    """Draws the weight curves of a life-regression model, with the lives (..., N) of real patches if given."""
    return visualize.draw_weight_curves(
        path,
        depth=model.geometry.depth,
        life=min(5.0, (1 + model.geometry.depth) / 2),
        lives=lives,
        temperature=model.slim.temperature,
        token_counts=model.slim.plan.token_counts,
    )
