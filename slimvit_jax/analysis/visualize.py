"""Pictures: the weight curves beta_t, the lives of patches and what is kept, accuracy against measured speed.

Each function takes plain arrays and a path, and writes one file (format by suffix, whole or not at all). Nothing here
touches the global state of matplotlib, so notebooks keep their own look.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.colors
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from slimvit_jax.errors import SlimError
from slimvit_jax.files import atomic_path

TEMPERATURES = (0.5, 1.0, 1.5, 2.0, 3.0)  # the values of U in the paper's Fig. 3 and Table V
INK, QUIET, ACCENT, SECOND = "#22262b", "#8a939d", "#c8452f", "#2f6fb0"
LIVES = "viridis"
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.edgecolor": "#c3c9d0",
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e8ebee",
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "savefig.facecolor": "white",
    "savefig.dpi": 150,
}
_SMALLEST_PRINT = 3.6  # points; below it a number in a cell is a smudge and is left out
DRAWN_FORMATS = tuple(sorted(Figure().canvas.get_supported_filetypes()))


def _save(figure: Figure, path: str | Path) -> Path:
    path = Path(path)
    if path.suffix.lower().lstrip(".") not in DRAWN_FORMATS:
        raise SlimError(
            f"cannot write a picture as {path.name!r}; endings: {', '.join('.' + f for f in DRAWN_FORMATS)}"
        )
    with atomic_path(path) as temporary:
        figure.savefig(temporary)
    return path


def soft_weight(lives: Any, layer: Any, temperature: float) -> np.ndarray:
    """beta(t) = sigmoid(U (tau - t)), equation (7), broadcasting `lives` against `layer`; float64."""
    return np.exp(-np.logaddexp(0.0, -temperature * (np.asarray(lives, np.float64) - np.asarray(layer, np.float64))))


def draw_weight_curves(
    path: str | Path,
    *,
    life: float = 5.0,
    depth: int = 12,
    temperatures: Sequence[float] = TEMPERATURES,
    lives: np.ndarray | None = None,
    temperature: float = 1.5,
    token_counts: Sequence[int] | None = None,
) -> Path:
    """The paper's Fig. 3: the step function of equation (4) and its smooth stand-ins for one patch of life `life`.

    With `lives` (..., N), a third panel shows what training saw: mean and 10-90 % range of beta over these patches,
    layer by layer, at `temperature`, beside the share of patches that `token_counts` (one per layer) computes.
    """
    with matplotlib.rc_context(STYLE):
        panels = 2 if lives is None else 3
        figure = Figure(figsize=(4.1 * panels, 3.2), layout="constrained")
        axes: list[Axes] = list(np.atleast_1d(figure.subplots(1, panels, sharey=True)))
        steps = np.linspace(1, depth, 60 * depth)
        hard, soft = axes[:2]
        hard.plot([1, life], [1, 1], color=INK, lw=2.2, solid_capstyle="butt")
        hard.plot([life, depth], [0, 0], color=INK, lw=2.2, solid_capstyle="butt")
        hard.plot([life, life], [0, 1], color=INK, lw=1, ls=":")
        hard.plot(life, 1, "o", color=INK, ms=6)
        hard.plot(life, 0, "o", mfc="white", mec=INK, ms=6)
        hard.set_title(f"hard weight of a patch of life {life:g}")
        shades = matplotlib.colormaps["plasma"](np.linspace(0.05, 0.82, len(temperatures)))
        layers = np.arange(1, depth + 1)
        for shade, u in zip(shades, temperatures, strict=True):
            soft.plot(steps, soft_weight(life, steps, u), color=shade, lw=1.8, label=f"U = {u:g}")
            soft.plot(layers, soft_weight(life, layers, u), "o", color=shade, ms=3)
        soft.axvline(life, color=QUIET, lw=1, ls=":")
        soft.set_title("soft weight in training")
        soft.legend(loc="upper right")
        if lives is not None:
            _draw_mean_weight(axes[2], np.asarray(lives).reshape(-1), layers, temperature, token_counts)
        for axis in axes:
            axis.set_xlabel("layer t")
            axis.set_xticks(_layer_ticks(depth))
            axis.set_xlim(0.7, depth + 0.3)
            axis.set_ylim(-0.04, 1.06)
        axes[0].set_ylabel("weight β(t)")
        return _save(figure, path)


def _draw_mean_weight(
    axis: Axes, lives: np.ndarray, layers: np.ndarray, temperature: float, token_counts: Sequence[int] | None
) -> None:
    beta = soft_weight(lives[:, None], layers, temperature)
    low, high = np.quantile(beta, [0.1, 0.9], axis=0)
    axis.fill_between(layers, low, high, color=ACCENT, alpha=0.15, lw=0, label="10-90 % of patches")
    axis.plot(layers, beta.mean(0), "o-", color=ACCENT, lw=1.8, ms=4, label=f"mean β, U = {temperature:g}")
    if token_counts is not None:
        share = np.asarray(token_counts, np.float64) / token_counts[0]
        axis.step(layers, share, where="mid", color=INK, lw=1.6, label="share computed at inference")
    axis.set_title(f"all {len(lives):,} patches of the sample images" if len(lives) > 1 else "one patch")
    axis.legend(loc="lower left", fontsize=8.5)


def _layer_ticks(depth: int) -> list[int]:
    step = max(1, math.ceil(depth / 12))
    return list(range(1, depth + 1, step))


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
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        columns = 1 + (lives is not None) + len(kept)
        width = float(np.clip(0.26 * grid[1], 1.9, 3.6))
        height = width * grid[0] / grid[1]
        figure = Figure(
            figsize=(columns * (width + 0.12) + 0.9, len(images) * (height + 0.34) + 0.45), layout="constrained"
        )
        axes = figure.subplots(len(images), columns, squeeze=False)
        extent = (0.0, float(grid[1]), float(grid[0]), 0.0)
        heat: Any = None
        for row, image in enumerate(images):
            picture = _as_picture(image)
            look = {"extent": extent, "cmap": "gray", "vmin": 0, "vmax": 1}
            axes[row, 0].imshow(
                picture, interpolation="nearest" if min(picture.shape[:2]) < 96 else "antialiased", **look
            )
            if row < len(titles):
                axes[row, 0].set_title(titles[row], fontsize=9)
            if lives is not None:
                heat = _draw_heat(axes[row, 1], lives[row].reshape(grid), life_range, extent, 72 * width / grid[1])
            for stage, indices in enumerate(kept):
                axis = axes[row, columns - len(kept) + stage]
                axis.imshow(picture, interpolation="nearest" if min(picture.shape[:2]) < 96 else "antialiased", **look)
                axis.imshow(_veil(np.asarray(indices[row]), grid), extent=extent, interpolation="nearest")
                _draw_cells(axis, grid, "#ffffff30")
            for axis in axes[row]:
                axis.set(xticks=[], yticks=[], xlim=extent[:2], ylim=extent[2:])
                axis.spines[:].set_visible(False)
        if lives is not None:
            low, high = life_range or (float(lives.min()), float(lives.max()))
            axes[0, 1].set_title(f"{score_name}, {low:.3g} to {high:.3g}", fontsize=9)
            bar = figure.colorbar(heat, ax=axes.ravel().tolist(), fraction=0.03, pad=0.01, shrink=0.8, aspect=30)
            bar.outline.set_visible(False)
            bar.set_label("life (layer)" if score_name == "life" else score_name)
        for stage, indices in enumerate(kept):
            axes[0, columns - len(kept) + stage].set_title(_stage_title(stage, indices, grid, token_counts), fontsize=9)
        return _save(figure, path)


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
    lives: np.ndarray,
    life_range: tuple[float, float] | None,
    extent: tuple[float, float, float, float],
    cell_points: float,
) -> Any:
    low, high = life_range or (float(lives.min()), float(lives.max()))
    shown = np.clip(lives, low, high)
    heat = axis.imshow(shown, cmap=LIVES, vmin=low, vmax=high, extent=extent, interpolation="nearest")
    _draw_cells(axis, lives.shape, "#ffffff50")
    size = min(0.42 * cell_points, 9.0)
    if size >= _SMALLEST_PRINT:
        middle = (low + high) / 2
        for (row, column), life in np.ndenumerate(shown):
            color = "white" if life < middle else INK
            text = f"{life:.1f}" if size >= 5.5 else f"{life:.0f}"
            axis.text(column + 0.5, row + 0.53, text, ha="center", va="center", fontsize=size, color=color)
    return heat


def _draw_cells(axis: Axes, grid: tuple[int, ...], color: str) -> None:
    """Thin lines between the patches; none where the cells are too small for them."""
    if max(grid) <= 32:
        axis.hlines(range(1, grid[0]), 0, grid[1], color=color, lw=0.5)
        axis.vlines(range(1, grid[1]), 0, grid[0], color=color, lw=0.5)


def _veil(kept: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """(rows, columns, 4): dark over dropped patches, a breath of light over kept ones, for black ones."""
    veil = np.tile(np.array([0.04, 0.05, 0.09, 0.86]), (grid[0] * grid[1], 1))
    veil[kept[kept >= 0]] = (1.0, 1.0, 0.9, 0.28)
    return veil.reshape(*grid, 4)


def _stage_title(stage: int, indices: np.ndarray, grid: tuple[int, int], token_counts: Sequence[int]) -> str:
    count = np.asarray(indices).shape[1]
    layers = [t for t, n in enumerate(token_counts, start=1) if n == count]
    where = f" from layer {layers[0]}" if layers and count < grid[0] * grid[1] else ""
    return f"stage {stage + 1}: {count} of {grid[0] * grid[1]}{where}"


def draw_accuracy_speed(
    path: str | Path, series: Mapping[str, Sequence[Mapping[str, Any]]], *, title: str = "", dense: str | None = None
) -> Path:
    """Top-1 against images per second.

    Each series is a list of points {"label", "images_per_second", "top1", "stderr"}. Shares are in
    0..1; bars are one standard error. `dense` names the series drawn as a reference line.
    """
    looks = [(ACCENT, "o"), (QUIET, "s"), (SECOND, "D"), ("#5d8a3a", "^"), ("#8d5aa6", "v")]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.4, 4.4), layout="constrained")
        axis = figure.subplots()
        colors = iter(looks)
        for name, points in series.items():
            speed = np.array([p["images_per_second"] for p in points])
            top1 = 100 * np.array([p["top1"] for p in points])
            error = 100 * np.array([p.get("stderr") or 0.0 for p in points])
            if name == dense:
                axis.errorbar(speed, top1, error, color=INK, marker="*", ms=13, lw=0, elinewidth=1, label=name)
                axis.axhline(top1[0], color=INK, lw=0.8, ls=":")
                continue
            color, marker = next(colors, looks[-1])
            front = color == ACCENT  # the first series is what the picture is about
            axis.errorbar(
                speed,
                top1,
                error,
                color=color,
                marker=marker,
                ms=7 if front else 5,
                lw=2 if front else 1.2,
                elinewidth=1.2 if front else 0.7,
                capsize=2.5,
                zorder=3 if front else 2,
                label=name,
            )
            if front:
                for point, x, y in zip(points, speed, top1, strict=True):
                    axis.annotate(
                        str(point["label"]), (x, y), xytext=(6, 7), textcoords="offset points", fontsize=9, color=color
                    )
        axis.set(xlabel="images per second, measured", ylabel="top-1 accuracy, %")
        axis.margins(x=0.1, y=0.15)
        axis.set_title(title)
        axis.legend(loc="best")
        return _save(figure, path)
