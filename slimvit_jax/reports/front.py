"""What `slimvit tune` shows: the table of schedules, and the picture of latency against agreement."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from slimvit_jax.budget import Budget
from slimvit_jax.budget.bench import Row
from slimvit_jax.reports import tables
from slimvit_jax.reports.style import ACCENT, INK, OF_DATA, QUIET, SECOND, log_scale, save

_CURVES = {"found": (ACCENT, "o", 2.2), "three drops": (SECOND, "s", 1.2), "constant r": (INK, "^", 1.2)}


def front_table(budget: Budget) -> Any:
    """The found schedule above those made by hand at the same cost."""
    scored = budget.found.accuracy is not None
    heads = ["schedule", "method", "ms", budget.measure, *(["top-1"] if scored else []), "patches left of every layer"]
    table = tables.table(*heads, title=f"{budget.images} images, {budget.target_ms:.2f} ms asked for")
    for row in (budget.found, *budget.by_hand):
        accuracy = [] if row.accuracy is None else [f"{100 * row.accuracy:.1f} %"]
        ms = f"{budget.ms:.2f}" if row is budget.found else f"~ {row.predicted_ms:.2f}"
        lost = f"{row.disagreement:.4g} ± {row.stderr:.1g}"
        table.add_row(row.shape, row.family, ms, lost, *accuracy, " ".join(map(str, row.counts)))
    return table


def draw_front(path: str | Path, budget: Budget, title: str = "") -> Path:
    """Disagreement against milliseconds for every schedule, and the patches left of every layer.

    Args:
      path: the file to write.
      budget: of `tune`.
      title: above the picture.
    """
    with matplotlib.rc_context(OF_DATA):
        figure = Figure(figsize=(9.2, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
        names = dict.fromkeys(row.shape for row in budget.front)
        for name in names:
            color, marker, width = _CURVES.get(name, (QUIET, "D", 1.2))
            points = sorted((row for row in budget.front if row.shape == name), key=lambda row: row.predicted_ms)
            label = f"{name}: {points[0].family}"
            xs, ys = [row.predicted_ms for row in points], [row.disagreement for row in points]
            left.plot(xs, ys, color=color, marker=marker, ms=4.5, lw=width, label=label, zorder=3 - (name != "found"))
            shown = _at(points, budget.target_ms) if name != "found" else budget.found
            counts = (budget.cost.geometry.num_patches, *shown.counts)
            right.step(range(len(counts)), counts, where="post", color=color, lw=width, zorder=3 - (name != "found"))
        left.axvline(budget.target_ms, color=QUIET, lw=1, ls=":")
        left.annotate(
            "asked for", (budget.target_ms, 0.94), xycoords=("data", "axes fraction"), xytext=(3, 0),
            textcoords="offset points", color=QUIET, fontsize=8,
        )  # fmt: skip
        log_scale(left.yaxis)
        left.set_xlabel(f"ms a batch of {budget.batch_size} (dense: {budget.dense_ms:.1f})")
        left.set_title(f"{budget.measure} from the dense model, less is better")
        left.legend(fontsize=7.5)
        right.set_xlabel("layer")
        right.set_title("patches left, at the latency asked for")
        right.set_ylim(0)
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontsize=11)
        return save(figure, path)


def _at(points: Sequence[Row], ms: float) -> Row:
    return min(points, key=lambda row: abs(row.predicted_ms - ms))
