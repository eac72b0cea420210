"""What else lies in results/: a line for each file, with its main figures where the layout is one of ours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.page.speed import Result, about

MIB = 2**20


def others(results: Mapping[str, Result], link: str) -> str:
    """A line a file; the papers' suite has a section of its own."""
    lines = []
    for name, result in results.items():
        if result.get("suite") == "papers":
            continue
        said = "; ".join(figures(result))
        lines.append(f"* {about(name, result, link)}" + (f" {said}." if said else ""))
    return "\n".join(lines)


def figures(result: Result) -> Iterator[str]:
    """Medians and sums of throughput.py, data_loading.py, training.py and memory.py."""
    for row in _rows(result, "throughput", "name", "images_per_second", "speed_ratio"):
        yield f"{row['name']} {row['images_per_second']:,.1f} images/s ({row['speed_ratio']:.2f}x)"
    for row in _rows(result, "training", "step", "milliseconds"):
        yield f"{row['step']} {row['milliseconds']:,.0f} ms"
    for loader, rates in result.get("rates", {}).items():
        yield f"{loader} {sorted(rates)[len(rates) // 2]:,.0f} images/s"
    for row in _rows(result, "results", "model"):
        if "outside_share" in row:
            yield f"{row['model']}: {100 * row['outside_share']:.1f} % of a step's time is outside the compiled step"
        for run in row.get("start", ()):
            what = "resumed" if run["resumed"] else "new"
            yield f"{row['model']}, {what} run: {run['seconds']:.1f} s to the first step"
        if "checkpoint" in row:
            yield f"{row['model']}: a checkpoint adds {row['checkpoint']['added_seconds']:.2f} s"
    for row in _rows(result, "memory", "model", "stage", "activations", "activations_remat"):
        kept, again = row["activations"] / MIB, row["activations_remat"] / MIB
        yield f"{row['model']}, {row['stage']}: activations {kept:,.0f} MiB an image, {again:,.0f} recomputed"


def _rows(result: Result, key: str, *needed: str) -> list[Mapping[str, Any]]:
    rows = result.get(key, ())
    return [row for row in rows if isinstance(row, dict) and row.keys() >= set(needed)] if rows else []
