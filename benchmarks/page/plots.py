"""The page's plots: accuracy against cost and speed, margins, budgets, temperature, growth, speed-ups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.page.cells import ANY_BUDGET, LIFE, RECOMMENDED, WITH_LOGITS, Study, difference, label, pool
from benchmarks.page.study import temperature_of
from slimvit_jax.analysis.report_text import paper_tables
from slimvit_jax.analysis.visualize import ACCENT, INK, QUIET, SECOND, STYLE
from slimvit_jax.files import atomic_path

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


def _look(name: str, place: int) -> dict[str, Any]:
    """Life regression in front, random patches as the line to beat, the others quiet but told apart."""
    if name == LIFE:
        return {"color": ACCENT, "marker": "o", "lw": 2.2, "ms": 7, "zorder": 4}
    if name == RECOMMENDED:
        return {"color": SECOND, "marker": "o", "lw": 2.2, "ms": 7, "zorder": 5}
    if name == "random":
        return {"color": INK, "marker": "x", "lw": 1.2, "ms": 6, "ls": "--", "zorder": 3}
    return {"color": COLORS[place % 20], "marker": MARKERS[place % len(MARKERS)], "lw": 0.9, "ms": 4.5, "zorder": 2}


def accuracy(path: Path, study: Study, speed: Mapping[tuple[str, float], float] | None = None) -> Path | None:
    """Top-1 of every method against multiply-adds, or against the measured speed-up where `speed` is given.

    Args:
      path: the file to write.
      study: at least one slimmed main cell, else nothing is drawn.
      speed: (method, keep rate) -> times as fast as dense.

    What lies more than FAR points below the dense model is told in the legend, or the others could not be told apart.
    """
    start = 100 * study.dense.mean
    with matplotlib.rc_context(STYLE):
        figure, (axis,) = _axes(8.6, 4.8)
        drawn = 0
        kinds = [(LIFE, "main", label(LIFE)), (RECOMMENDED, "training", f"life regression,\n{RECOMMENDED}")]
        kinds += [(name, "main", label(name)) for name in study.variants("main") if name != LIFE]
        for place, (name, group, called) in enumerate(kinds):
            points, far = [], ""
            for rate in study.train_rates("main"):
                top1, flops = study.stat(group, name, rate), study.stat(group, name, rate, key="flops")
                if rate == 1 or top1 is None or flops is None:
                    continue
                same_speed = LIFE if name == RECOMMENDED else name
                x = flops.mean / 1e6 if speed is None else speed.get((same_speed, rate))
                if x is None:
                    continue
                if 100 * top1.mean < start - FAR:
                    far += f"\n(below: {100 * top1.mean:.1f} % at {rate:g})"
                else:
                    points.append((x, 100 * top1.mean, 100 * (top1.spread or 0.0)))
            if points or far:
                x, y, spread = zip(*points, strict=True) if points else ((), (), ())
                bars = spread if name in (LIFE, RECOMMENDED, "random") else None  # of all they would hide the lines
                axis.errorbar(x, y, bars, elinewidth=0.8, capsize=2, label=called + far, **_look(name, place))
                drawn += 1
        if not drawn:
            return None
        axis.plot(study.facts["dense"]["flops"] / 1e6 if speed is None else 1.0, start, "*", color=INK, ms=13)
        axis.axhline(start, color=INK, lw=0.8, ls=":", label="dense, before")
        axis.set_xlabel("multiply-adds, M" if speed is None else "measured speed-up over the dense model")
        axis.set_ylabel("top-1, %")
        axis.set_title(
            f"{study.config('data.name')}, {study.scale}: "
            + (f"mean of up to {study.seeds} seeds, bars are their spread" if study.seeds > 1 else "one seed")
        )
        figure.legend(loc="outside right center", fontsize=8.5)
        return _save(figure, path)


def margins(path: Path, study: Study) -> Path | None:
    """The lead of learned over random lives, by keep rate."""
    paper, best, logits = ("main", LIFE), ("training", RECOMMENDED), ("training", WITH_LOGITS)
    comparisons = [
        ("paper's losses: same weights, random order", paper, paper, "random", ACCENT, "o-"),
        ("paper's losses: tuned with random patches", paper, ("main", "random"), "learned", ACCENT, "s--"),
        ("recommended: tuned with random patches", best, ("main", "random"), "learned", SECOND, "s--"),
        ("both with the dense model's logits", logits, ("distilled", "random"), "learned", INK, "D:"),
    ]
    with matplotlib.rc_context(STYLE):
        figure, (axis,) = _axes(8.6, 3.6)
        drawn = 0
        for name, ours, chance, lives, color, style in comparisons:
            rates = study.train_rates("main")
            found = [(r, difference(study.by_seed(*ours, r), study.by_seed(*chance, r, lives=lives))) for r in rates]
            points = [(r, 100 * gap.mean, 100 * (gap.spread or 0.0)) for r, gap in found if gap is not None]
            if points:
                x, y, spread = zip(*points, strict=True)
                axis.errorbar(x, y, spread, color=color, fmt=style, capsize=3, lw=1.6, label=name)
                drawn += 1
        if not drawn:
            return None
        axis.axhline(0, color=INK, lw=0.8, ls=":")
        axis.set(xlabel="keep rate", ylabel="learned minus random, points")
        axis.set_title("Learned lives against random ones; bars are the spread over seeds")
        _ticks(axis, study.train_rates("main"))
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
        lines += [(style, group, variant, rate, place / max(1, len(rates) - 1)) for place, rate in enumerate(rates)]
    if not lines:
        return None
    with matplotlib.rc_context(STYLE):
        figure, (axis,) = _axes(8.6, 4.0)
        for style, group, variant, trained, place in lines:
            shade = matplotlib.colormaps["plasma" if group == "main" else "viridis"](0.1 + 0.65 * place)
            if variant == ANY_BUDGET:
                shade = INK
            found = [(rate, study.stat(group, variant, trained, keep_rate=rate)) for rate in study.deploy_rates()]
            x, y = zip(*[(rate, 100 * stat.mean) for rate, stat in found if stat is not None], strict=True)
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


def temperatures(path: Path, study: Study) -> Path | None:
    """Table V, ours and the paper's, as changes against U = 1.5."""
    names = sorted(study.variants("temperature"), key=temperature_of)
    if "U=1.5" not in names or len(names) < 2:
        return None
    rate = study.train_rates("temperature")[0]
    base = study.by_seed("temperature", "U=1.5", rate)
    found = [(temperature_of(n), difference(study.by_seed("temperature", n, rate), base)) for n in names]
    points = [(u, 100 * gap.mean, 100 * (gap.spread or 0.0)) for u, gap in found if gap is not None]
    if not points:
        return None
    theirs = paper_tables()["table5_temperature"]
    reference = theirs["top1"][theirs["U"].index(1.5)]
    with matplotlib.rc_context(STYLE):
        figure, (axis,) = _axes(6.4, 3.4)
        x, y, spread = zip(*points, strict=True)
        axis.errorbar(x, y, spread, color=ACCENT, marker="o", capsize=3, lw=1.8, label="ours")
        axis.plot(theirs["U"], [t - reference for t in theirs["top1"]], "s--", color=QUIET, label="paper, ImageNet-1k")
        axis.axhline(0, color=INK, lw=0.8, ls=":")
        axis.set(xlabel="temperature U", ylabel="top-1 minus that at U = 1.5, points")
        axis.legend()
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
