"""The plots of docs/results.md: accuracy against cost and speed, budgets, growth, speed-ups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.results import ANY_BUDGET, LIFE, ONE_FOR_ALL, RECOMMENDED, Study, label, pool
from slimvit_jax.files import atomic_path
from slimvit_jax.reports.style import ACCENT, INK, QUIET, SECOND, STYLE

MARKERS = "sD^vPXph<>*d8H"
COLORS = matplotlib.colormaps["tab20"](np.linspace(0, 1, 20))
FAR = 10.0  # points below the dense model, where a plot of accuracies ends


def _save(figure: Figure, path: Path) -> Path:
    with atomic_path(path) as temporary:
        figure.savefig(temporary)
    return path


def _axes(width: float, height: float, columns: int = 1) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(np.atleast_1d(figure.subplots(1, columns)))


#: Markers of life regression's variants.
OF_LIFE = {"squeezed": "o", "squeezed in every layer": "D", "dropped": "v", "hard masks": "^"}


def _look(name: str, place: int) -> dict[str, Any]:
    """Life regression in front, random patches as the line to beat, the others quiet but told apart."""
    if name.startswith((LIFE, "coverage")) or name in (RECOMMENDED, ONE_FOR_ALL):
        color = ACCENT if name in (LIFE, f"{LIFE}, squeezed", "coverage lives, squeezed") else SECOND
        marker = "P" if name == ONE_FOR_ALL else OF_LIFE.get(name.partition(", ")[2], "s")
        return {"color": color, "marker": marker, "lw": 2.2, "ms": 7, "zorder": 4}
    if name == "random":
        return {"color": INK, "marker": "x", "lw": 1.2, "ms": 6, "ls": "--", "zorder": 3}
    return {"color": COLORS[place % 20], "marker": MARKERS[place % len(MARKERS)], "lw": 0.9, "ms": 4.5, "zorder": 2}


def accuracy(
    path: Path, study: Study, groups: Sequence[str], speed: Mapping[tuple[str, float], float] | None = None
) -> Path | None:
    """Top-1 of every variant against multiply-adds, or against the measured speed-up where `speed` is given.

    Args:
      path: the file to write.
      study: nothing is drawn where it has no slimmed run in `groups`.
      groups: "main", "untuned"; a variant that two groups have is drawn from the first.
      speed: (variant, keep rate) -> times as fast as dense.

    What lies more than FAR points below the dense model is told in the legend, or the others could not be told apart.
    """
    start = 100 * study.dense.mean
    kinds = {name: group for group in reversed(groups) for name in study.variants(group) if name != "dense"}
    kinds = {name: group for name, group in kinds.items() if group != "training" or name == RECOMMENDED}
    with matplotlib.rc_context(STYLE):
        figure, (axis,) = _axes(8.6, 4.8)
        drawn = 0
        for place, (name, group) in enumerate(sorted(kinds.items())):
            points, far = [], ""
            for rate in study.train_rates(group):
                top1, flops = study.stat(group, name, rate), study.stat(group, name, rate, key="flops")
                if rate == 1 or top1 is None or flops is None:
                    continue
                x = flops.mean / 1e6 if speed is None else speed.get((name, rate))
                if x is None:
                    continue
                if 100 * top1.mean < start - FAR:
                    far += f"\n(below: {100 * top1.mean:.1f} % at {rate:g})"
                else:
                    points.append((x, 100 * top1.mean, 100 * (top1.spread or 0.0)))
            if points or far:
                x, y, spread = zip(*points, strict=True) if points else ((), (), ())
                called = f"life regression,\n{name}" if name == RECOMMENDED else label(name)
                shown = (LIFE, "random", RECOMMENDED, ONE_FOR_ALL)  # bars of all would hide the lines
                bars = spread if name.startswith(shown) else None
                axis.errorbar(x, y, bars, elinewidth=0.8, capsize=2, label=called + far, **_look(name, place))
                drawn += 1
        if not drawn:
            return None
        axis.axhline(start, color=INK, lw=0.8, ls=":", label="dense, before")
        longer = study.stat("main", "dense", 1.0) if groups[0] == "main" else None
        if longer is not None:
            axis.axhline(100 * longer.mean, color=INK, lw=0.8, ls="--", label="dense, tuned as long")
        end = start if longer is None else 100 * longer.mean
        axis.plot(study.facts["dense"]["flops"] / 1e6 if speed is None else 1.0, end, "*", color=INK, ms=13)
        axis.set_xlabel("multiply-adds, M" if speed is None else "measured speed-up over the dense model")
        axis.set_ylabel("top-1, %")
        axis.set_title(f"{study.scale}, {' and '.join(groups)}: means over seeds; bars are their spread")
        figure.legend(loc="outside right center", fontsize=8.5)
        return _save(figure, path)


def _ticks(axis: Axes, rates: Sequence[float]) -> None:
    axis.set_xticks([rate for rate in rates if rate < 1])


def budgets(path: Path, study: Study) -> Path | None:
    """Accuracy by the rate deployed at, one line per rate trained at."""
    lines = []
    kinds = [("o-", "main", LIFE), ("s--", "training", RECOMMENDED), ("D:", "training", ANY_BUDGET)]
    for style, group, variant in kinds:
        rates = [rate for rate in study.train_rates(group) if study.by_seed(group, variant, rate)]
        for place, trained in enumerate(rates):
            found = [(rate, study.stat(group, variant, trained, keep_rate=rate)) for rate in study.deploy_rates()]
            points = [(rate, 100 * stat.mean) for rate, stat in found if stat is not None]
            if len(points) > 1:
                lines.append((style, group, variant, trained, place / max(1, len(rates) - 1), points))
    if not lines:
        return None
    with matplotlib.rc_context(STYLE):
        figure, (axis,) = _axes(8.6, 4.0)
        for style, group, variant, trained, place, points in lines:
            shade = matplotlib.colormaps["plasma" if group == "main" else "viridis"](0.1 + 0.65 * place)
            if variant == ANY_BUDGET:
                shade = INK
            x, y = zip(*points, strict=True)
            recipe = {LIFE: "paper's losses", RECOMMENDED: "recommended", ANY_BUDGET: "sampled budgets"}[variant]
            at = "" if variant == ANY_BUDGET else f", trained at {trained:g}"
            axis.plot(x, y, style, color=shade, lw=1.6, ms=4, label=recipe + at)
            native = pool(study.by_seed(group, variant, trained))
            if native is not None and variant != ANY_BUDGET:
                axis.plot(trained, 100 * native.mean, "o", mfc="none", mec=shade, ms=11)
        axis.axhline(100 * study.dense.mean, color=INK, lw=0.8, ls=":", label="dense, before")
        _ticks(axis, study.deploy_rates())
        axis.set(xlabel="keep rate deployed at", ylabel="top-1, %")
        axis.set_title("One set of weights at every budget; rings: the rate trained at")
        figure.legend(loc="outside right center", fontsize=8.5)
        return _save(figure, path)


def growth(path: Path, rows: Sequence[Mapping[str, Any]], key: str) -> Path | None:
    """Images per second and speed-up against "tokens" or "depth", one line per model."""
    if len({row[key] for row in rows}) < 2:
        return None
    with matplotlib.rc_context(STYLE):
        figure, (speed, ratio) = _axes(9.4, 3.6, 2)
        for place, name in enumerate(dict.fromkeys(row["name"] for row in rows)):
            own = sorted((row for row in rows if row["name"] == name), key=lambda row: row[key])
            x = [row[key] for row in own]
            color = INK if name == "dense" else [ACCENT, SECOND, QUIET, "#5d8a3a"][(place - 1) % 4]
            shown = name.replace("life_regression", "life regression").replace("evit", "EViT")
            speed.plot(x, [row["images_per_second"] for row in own], "o-", color=color, label=shown)
            ratio.plot(x, [row["speed_ratio"] for row in own], "o-", color=color)
            if name != "dense":
                dense = {row[key]: row["flops"] for row in rows if row["name"] == "dense"}
                ratio.plot(x, [dense[row[key]] / row["flops"] for row in own], ":", color=color, lw=1)
        speed.set(xlabel=key, ylabel="images/s", yscale="log")
        ratio.set(xlabel=key, ylabel="x dense")
        ratio.set_title("dotted: ratio of multiply-adds")
        speed.legend(fontsize=8.5)
        return _save(figure, path)


def speedups(path: Path, rows: Sequence[tuple[str, float | None, float, float]]) -> Path | None:
    """One line per row of the papers' tables: the paper's speed-up, ours, and the ratio of multiply-adds.

    Args:
      path: the file to write.
      rows: (label, paper's or None, ours, fewer multiply-adds).
    """
    if not rows:
        return None
    with matplotlib.rc_context(STYLE):
        figure, (axis,) = _axes(8.0, 0.9 + 0.27 * len(rows))
        places = range(len(rows), 0, -1)
        axis.plot([row[3] for row in rows], places, "|", color=INK, ms=12, label="ratio of multiply-adds")
        axis.plot([row[2] for row in rows], places, "o", color=ACCENT, label="ours, measured")
        theirs = [(row[1], place) for row, place in zip(rows, places, strict=True) if row[1]]
        if theirs:
            axis.plot(*zip(*theirs, strict=True), "s", mfc="none", color=SECOND, label="paper, Quadro P6000")
        axis.set_yticks(list(places), [row[0] for row in rows])
        axis.set_ylim(0.3, len(rows) + 0.7)
        axis.axvline(1, color=INK, lw=0.8, ls=":")
        axis.set_xlabel("x the dense model's images/s")
        figure.legend(loc="outside upper center", ncols=3, fontsize=8.5)
        return _save(figure, path)
