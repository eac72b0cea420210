"""Pictures of patches: their lives and what is kept of them, or which of them became one token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from slimvit_jax.errors import SlimError
from slimvit_jax.reports.style import ACCENT, INK, LIVES, OF_DATA, fitted, save

_SMALLEST_PRINT = 3.6  # points; below it a number in a cell is a smudge and is left out
_CAPTION = 9.0  # points
_PHOTO = 96  # pixels: images with sides of at least so many are photographs, others are looked at pixel by pixel


def draw_lives(
    path: str | Path,
    images: Sequence[np.ndarray] | np.ndarray,
    *,
    grid: tuple[int, int],
    kept: Sequence[np.ndarray] = (),
    lives: np.ndarray | None = None,
    life_range: tuple[float, float] | None = None,
    token_counts: Sequence[int] = (),
    titles: Sequence[str] = (),
    score_name: str = "life",
) -> Path:
    """The paper's Fig. 4, one row per image: the image, the life of every patch, and what is kept after each drop.

    On photographs (sides of at least 96 pixels) lives are a smooth veil of colour over the picture in grey, and what is
    dropped fades; on small images every patch is a cell, with its life printed in it.

    Args:
      path: the file to write.
      images: (H, W), (H, W, 1) or (H, W, 3) each, uint8 or floats in 0..1, of any size: the grid is laid over it.
      grid: rows and columns of patches.
      kept: one (B, n) array per drop, the raster indices of the patches still computed after it.
      lives: (B, N) in raster order; omitted for methods that have none. Printed in the cells where they are legible.
      life_range: lives are shown clamped to it, as in the paper: (t_base, T).
      token_counts: patches of each layer, to say from which layer a drop acts.
      titles: one per image.
      score_name: what the scores are called, if they are no lives.
    """
    pictures = [_as_picture(image) for image in images]
    photos = [min(picture.shape[:2]) >= _PHOTO for picture in pictures]
    with matplotlib.rc_context({**OF_DATA, "axes.grid": False, "savefig.dpi": 200 if any(photos) else 150}):
        columns = 1 + (lives is not None) + len(kept)
        width = float(np.clip(0.26 * grid[1], 3.2 if any(photos) else 1.9, 3.6))
        height = width * grid[0] / grid[1]
        place = lambda caption: fitted(caption, 72 * width, _CAPTION)
        captions = [place(title) for title in titles]
        heads = [place(_stage_title(*stage, grid, token_counts)) for stage in enumerate(kept)]
        unit, power = unit_of(lives) if life_range is None else (1.0, "")
        if lives is not None:
            low, high = life_range or (float(lives.min()), float(lives.max()))
            heads.append(place(f"{score_name}{power}, {low / unit:.3g} to {high / unit:.3g}"))
        rows = [max((c.count("\n") for c in [*captions[r : r + 1], *(heads if r == 0 else [])]), default=0)
                for r in range(len(images))]  # fmt: skip
        tall = len(images) * (height + 0.34) + 0.45 + 0.15 * sum(rows)
        figure = Figure(figsize=(columns * (width + 0.12) + 0.9, tall), layout="constrained")
        axes = figure.subplots(len(images), columns, squeeze=False)
        extent = (0.0, float(grid[1]), float(grid[0]), 0.0)
        heat: Any = None
        for row, (picture, photo) in enumerate(zip(pictures, photos, strict=True)):
            interpolation = "antialiased" if photo else "nearest"
            look = {"extent": extent, "cmap": "gray", "vmin": 0, "vmax": 1, "interpolation": interpolation}
            axes[row, 0].imshow(picture, **look)
            if row < len(captions):
                axes[row, 0].set_title(captions[row], fontsize=_CAPTION)
            if lives is not None:
                shown = np.clip(lives[row].reshape(grid), low, high) / unit
                bounds = (low / unit, high / unit)
                if photo:
                    axes[row, 1].imshow(0.85 * _grey(picture), **look)
                    heat = _draw_veil(axes[row, 1], shown, bounds, extent)
                else:
                    heat = _draw_heat(axes[row, 1], shown, bounds, extent, 72 * width / grid[1])
            for stage, indices in enumerate(kept):
                axis = axes[row, columns - len(kept) + stage]
                held = _held(np.asarray(indices[row]), grid)
                if photo:
                    axis.imshow(_faded(picture, held), **look)
                    _draw_fences(axis, held, "white", 0.7)
                else:
                    axis.imshow(picture, **look)
                    axis.imshow(_shade(held), extent=extent, interpolation="nearest")
                    _draw_cells(axis, grid, "#ffffff30")
            for axis in axes[row]:
                axis.set(xticks=[], yticks=[], xlim=extent[:2], ylim=extent[2:])
                axis.spines[:].set_visible(False)
        if lives is not None:
            axes[0, 1].set_title(heads.pop(), fontsize=_CAPTION)
            bar = figure.colorbar(heat, ax=axes.ravel().tolist(), fraction=0.03, pad=0.01, shrink=0.8, aspect=30)
            bar.outline.set_visible(False)
            bar.set_label("life (layer)" if score_name == "life" else f"{score_name}{power}")
        for stage, head in enumerate(heads):
            axes[0, columns - len(kept) + stage].set_title(head, fontsize=_CAPTION)
        return save(figure, path)


def draw_groups(
    path: str | Path,
    images: Sequence[np.ndarray] | np.ndarray,
    *,
    grid: tuple[int, int],
    groups: Sequence[np.ndarray],
    titles: Sequence[str] = (),
) -> Path:
    """One row per image: the image, and after each merge the patches of one token in their mean colour, fenced in.

    Args:
      path: the file to write.
      images: as of `draw_lives`.
      grid: rows and columns of patches.
      groups: one (B, N) array per merge: the number of the token that each patch is part of, most of all; -1 for a
        patch that was dropped, which gets a cross.
      titles: one per image.
    """
    with matplotlib.rc_context({**OF_DATA, "axes.grid": False}):
        width = float(np.clip(0.2 * grid[1], 1.9, 3.6))
        height = width * grid[0] / grid[1]
        captions = [fitted(title, 72 * width, _CAPTION) for title in titles]
        size = ((1 + len(groups)) * (width + 0.12), len(images) * (height + 0.5) + 0.2)
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(len(images), 1 + len(groups), squeeze=False)
        extent = (0.0, float(grid[1]), float(grid[0]), 0.0)
        for row, image in enumerate(images):
            picture = _as_picture(image)
            look = {"extent": extent, "cmap": "gray", "vmin": 0, "vmax": 1}
            axes[row, 0].imshow(picture, **look)
            if row < len(captions):
                axes[row, 0].set_title(captions[row], fontsize=_CAPTION)
            for axis, owners in zip(axes[row, 1:], groups, strict=True):
                owner = np.asarray(owners[row])
                axis.imshow(mean_colours(picture, owner, grid), interpolation="nearest", **look)
                _draw_fences(axis, owner.reshape(grid))
                rows, columns = np.nonzero(owner.reshape(grid) < 0)
                axis.plot(columns + 0.5, rows + 0.5, "x", color=ACCENT, ms=4)
                groups_of_it = len(np.unique(owner[owner >= 0]))
                axis.set_title(f"{groups_of_it} groups of {grid[0] * grid[1]} patches", fontsize=_CAPTION)
            for axis in axes[row]:
                axis.set(xticks=[], yticks=[], xlim=extent[:2], ylim=extent[2:])
                axis.spines[:].set_visible(False)
        return save(figure, path)


def mean_colours(picture: np.ndarray, owner: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """(rows, columns) or (rows, columns, 3): every patch in the mean colour of its group."""
    rows, columns = (np.linspace(0, side, n + 1).astype(int) for side, n in zip(picture.shape, grid, strict=False))
    sums = np.add.reduceat(np.add.reduceat(picture, rows[:-1], axis=0), columns[:-1], axis=1)
    sizes = np.diff(rows)[:, None] * np.diff(columns)
    patches = (sums / sizes.reshape(sizes.shape + (1,) * (picture.ndim - 2))).reshape(len(owner), -1)
    _, place = np.unique(owner, return_inverse=True)
    means = np.stack([np.bincount(place, channel) / np.bincount(place) for channel in patches.T], axis=-1)
    means[np.unique(owner) < 0] = 0.0
    return means[place].reshape(*grid, *picture.shape[2:])


def _draw_fences(axis: Axes, owner: np.ndarray, color: str = ACCENT, width: float = 0.9) -> None:
    """Lines between patches of different groups."""
    down, right = np.argwhere(owner[1:] != owner[:-1]), np.argwhere(owner[:, 1:] != owner[:, :-1])
    axis.hlines(down[:, 0] + 1, down[:, 1], down[:, 1] + 1, color=color, lw=width)
    axis.vlines(right[:, 1] + 1, right[:, 0], right[:, 0] + 1, color=color, lw=width)


def unit_of(scores: np.ndarray | None) -> tuple[float, str]:
    """What to divide scores by so that their first digits are seen, and how to say that: (0.001, " (1e-3)")."""
    largest = 0.0 if scores is None else float(np.abs(scores).max())
    if not 0 < largest < math.inf or 0.1 <= largest < 1000:
        return 1.0, ""
    exponent = 3 * math.floor(math.log10(largest) / 3)
    return 10.0**exponent, f" (in 1e{exponent})"


def _as_picture(image: np.ndarray) -> np.ndarray:
    """(H, W) or (H, W, 3) float in 0..1."""
    image = np.asarray(image)
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[..., 0]
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3):
        raise SlimError(f"cannot draw an image of shape {image.shape}; it must be (H, W), (H, W, 1) or (H, W, 3)")
    return image / 255.0 if image.dtype == np.uint8 else np.clip(image, 0.0, 1.0)


def _draw_heat(
    axis: Axes,
    shown: np.ndarray,
    bounds: tuple[float, float],
    extent: tuple[float, float, float, float],
    cell_points: float,
) -> Any:
    low, high = bounds
    heat = axis.imshow(shown, cmap=LIVES, vmin=low, vmax=high, extent=extent, interpolation="nearest")
    _draw_cells(axis, shown.shape, "#ffffff50")
    size = min(0.42 * cell_points, 9.0)
    if size >= _SMALLEST_PRINT:
        middle = (low + high) / 2
        precise = ".2f" if high - low < 2 else ".1f" if max(-low, high) < 100 else ".0f"
        for (row, column), life in np.ndenumerate(shown):
            color = "white" if life < middle else INK
            text = f"{life:{precise}}" if size >= 5.5 else f"{life:.0f}"
            axis.text(column + 0.5, row + 0.53, text, ha="center", va="center", fontsize=size, color=color)
    return heat


def _draw_veil(
    axis: Axes, shown: np.ndarray, bounds: tuple[float, float], extent: tuple[float, float, float, float]
) -> Any:
    """Smooth colours over a photograph; returns the image, for a colour bar of its look."""
    low, high = bounds
    return axis.imshow(shown, cmap=LIVES, vmin=low, vmax=high, extent=extent, interpolation="bicubic", alpha=0.6)


def _draw_cells(axis: Axes, grid: tuple[int, ...], color: str) -> None:
    """Thin lines between the patches; none where the cells are too small for them."""
    if max(grid) <= 32:
        axis.hlines(range(1, grid[0]), 0, grid[1], color=color, lw=0.5)
        axis.vlines(range(1, grid[1]), 0, grid[0], color=color, lw=0.5)


def _held(kept: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """(rows, columns) bool: which patches are among the raster indices `kept`; -1 is none."""
    held = np.zeros(grid[0] * grid[1], bool)
    held[kept[kept >= 0]] = True
    return held.reshape(grid)


def _shade(held: np.ndarray) -> np.ndarray:
    """(rows, columns, 4): dark over dropped patches, a breath of light over kept ones, for black ones."""
    return np.where(held[..., None], (1.0, 1.0, 0.9, 0.28), (0.04, 0.05, 0.09, 0.86))


def _grey(picture: np.ndarray) -> np.ndarray:
    """(H, W) luma of a picture."""
    return picture if picture.ndim == 2 else picture @ np.array([0.299, 0.587, 0.114])


def _faded(picture: np.ndarray, held: np.ndarray) -> np.ndarray:
    """(H, W, 3): kept patches as they are, the others grey and nearly dark, so that one still sees what they were."""
    rows, columns = (np.arange(side) * n // side for side, n in zip(picture.shape, held.shape, strict=False))
    whole = picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, -1)
    dim = 0.05 + 0.22 * _grey(picture)[..., None]
    return np.where(held[rows][:, columns][..., None], whole, dim)


def _stage_title(stage: int, indices: np.ndarray, grid: tuple[int, int], token_counts: Sequence[int]) -> str:
    count = np.asarray(indices).shape[1]
    layers = [t for t, n in enumerate(token_counts, start=1) if n == count]
    where = f" from layer {layers[0]}" if layers and count < grid[0] * grid[1] else ""
    return f"stage {stage + 1}: {count} of {grid[0] * grid[1]}{where}"
