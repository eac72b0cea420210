"""Plots: the weight curves beta_t, and accuracy against measured speed.

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

from slimvit_jax.reports.style import ACCENT, INK, OF_DATA, QUIET, SECOND, save
from slimvit_jax.text import printable

TEMPERATURES = (0.5, 1.0, 1.5, 2.0, 3.0)  # the values of U in the paper's Fig. 3 and Table V


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
    masked: Sequence[Sequence[int]] = (),
) -> Path:
    """The paper's Fig. 3: the step function of equation (4) and its smooth stand-ins for one patch of life `life`.

    With `lives` (..., N), a third panel shows what training saw: mean and 10-90 % range of beta over these patches,
    layer by layer, at `temperature`, beside the share of patches that `token_counts` (one per layer) computes.

    Args:
      path: the file to write.
      life, depth, temperatures: of the first two panels.
      lives, temperature, token_counts: see above.
      masked: for training that masks patches instead of weighing them: the counts per layer of each of its budgets. The
        third panel then shows the shares of patches that it does not mask; the smooth weight gives the gradient alone.
    """
    with matplotlib.rc_context(OF_DATA):
        panels = 2 if lives is None and not masked else 3
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
        soft.set_title("smooth weight: its gradient alone" if masked else "soft weight in training")
        soft.legend(loc="upper right")
        if masked:
            _draw_masks(axes[2], layers, masked, token_counts)
        elif lives is not None:
            _draw_mean_weight(axes[2], np.asarray(lives).reshape(-1), layers, temperature, token_counts)
        for axis in axes:
            axis.set_xlabel("layer t")
            axis.set_xticks(_layer_ticks(depth))
            axis.set_xlim(0.7, depth + 0.3)
            axis.set_ylim(-0.04, 1.06)
        axes[0].set_ylabel("weight β(t)")
        return save(figure, path)


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


def _draw_masks(
    axis: Axes, layers: np.ndarray, masked: Sequence[Sequence[int]], token_counts: Sequence[int] | None
) -> None:
    shares = np.asarray(masked, np.float64) / np.asarray(masked, np.float64)[:, :1]
    for share in shares:
        axis.step(layers, share, where="mid", color=ACCENT, lw=1, alpha=0.55)
    label = "mean of the budgets drawn" if len(shares) > 1 else "share not masked"
    axis.plot(layers, shares.mean(0), "o-", color=ACCENT, lw=1.8, ms=4, label=label)
    if token_counts is not None:
        computed = np.asarray(token_counts, np.float64) / token_counts[0]
        axis.step(layers, computed, where="mid", color=INK, lw=1.6, label="share computed at inference")
    axis.set_title("patches not masked in training")
    axis.legend(loc="lower left", fontsize=8.5)


def _layer_ticks(depth: int) -> list[int]:
    step = max(1, math.ceil(depth / 12))
    return list(range(1, depth + 1, step))


def draw_accuracy_speed(
    path: str | Path, series: Mapping[str, Sequence[Mapping[str, Any]]], *, title: str = "", dense: str | None = None
) -> Path:
    """Top-1 against images per second.

    Each series is a list of points {"label", "images_per_second", "top1", "stderr"}. Shares are in
    0..1; bars are one standard error. `dense` names the series drawn as a reference line.
    """
    looks = [(ACCENT, "o"), (QUIET, "s"), (SECOND, "D"), ("#5d8a3a", "^"), ("#8d5aa6", "v")]
    with matplotlib.rc_context(OF_DATA):
        figure = Figure(figsize=(7.4, 4.4), layout="constrained")
        axis = figure.subplots()
        colors = iter(looks)
        for name, points in ((printable(name), points) for name, points in series.items()):
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
                        printable(point["label"]),
                        (x, y),
                        xytext=(6, 7),
                        textcoords="offset points",
                        fontsize=9,
                        color=color,
                    )
        axis.set(xlabel="images per second, measured", ylabel="top-1 accuracy, %")
        axis.margins(x=0.1, y=0.15)
        axis.set_title(printable(title))
        axis.legend(loc="best")
        return save(figure, path)
