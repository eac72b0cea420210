"""The tables of docs/results.md and README.md, each made from files of results/ alone.

`TABLES` has them by name; a page says where one stands (`benchmarks.report`). A table has no sentences: those are
written by a person around it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import slimvit_jax as slim
from benchmarks import budget, fidelity, latency, resolution, saliency, study_tables
from benchmarks import segmentation as probe
from benchmarks.command import read_rows
from benchmarks.paper_rows import ROUNDING, count, paper_rows, paper_speedup
from benchmarks.results import LIFE, Study, read_json, table
from slimvit_jax.files import read_text

PAPER_TABLES = {
    "table1_deit": "Life regression, Table I",
    "table2_vit": "Life regression, Table II",
    "table3_keep_rate": "Life regression, Table III (DeiT-S)",
    "sit": "SiT",
    "lvvit": "LV-ViT",
}


def counts(results: Path) -> str:
    """Every row of the papers' tables: printed and counted multiply-adds and parameters."""
    rows = []
    for row in paper_rows():
        counted, printed = count(row), row.figures["flops"]
        follows = "mean over images" if row.dynamic else "yes" if counted.agrees else "no"
        if follows == "yes" and abs(counted.as_paper - printed) > ROUNDING:
            follows = "nearly"
        millions = f"{row.figures['params_m']:g}" if "params_m" in row.figures else "—"
        own = f"{counted.flops:.3f}" if row.method == LIFE else "—"
        cells = [PAPER_TABLES[row.table], row.label, f"{printed:.1f}", f"{counted.as_paper:.3f}", follows, own]
        rows.append([*cells, millions, f"{counted.parameters:.2f}"])
    header = ["table", "row", "printed G", "counted", "follows", "our predictor", "printed M", "counted M"]
    return table(header, rows, 2)


def _suite(results: Path) -> list[tuple[Any, Any, float, Any]]:
    """(row of a paper's table, its measurement, ratio of multiply-adds, timm's measurement) of what was measured."""
    entries = read_json(results / "papers_cpu.json")["throughput"]
    dense = {entry["model"]: entry for entry in entries if entry["name"] == "dense"}
    timm = {entry["model"]: entry for entry in entries if entry["name"] == "timm"}
    where = {tuple(named): entry for entry in entries for named in entry.get("rows", ())}
    found = [(row, where.get((row.table, row.label))) for row in paper_rows()]
    return [
        (row, entry, dense[entry["model"]]["flops"] / entry["flops"], timm.get(entry["model"]))
        for row, entry in found
        if entry is not None
    ]


def papers_speed(results: Path) -> str:
    """Speed of every row of the papers' tables beside the printed one."""
    rows = []
    for row, entry, ratio, eager in _suite(results):
        paper = paper_speedup(row)
        rows.append([PAPER_TABLES[row.table], row.label, f"{entry['images_per_second']:,.1f}"])
        rows[-1] += [f"{entry['speed_ratio']:.2f}", f"{paper:.2f}" if paper else "—", f"{ratio:.2f}"]
        rows[-1] += [f"{entry['images_per_second'] / eager['images_per_second']:.2f}" if eager else "—"]
    header = ["table", "row", "images/s", "x dense", "paper: x dense", "x fewer multiply-adds", "x timm"]
    return table(header, rows, 2)


def papers_rows(results: Path) -> list[tuple[str, float | None, float, float]]:
    """(label, the paper's speed-up, ours, ratio of multiply-adds) of the slimmed rows, for the plot."""
    return [
        (f"{row.label}, {row.table.split('_')[0]}", paper_speedup(row), entry["speed_ratio"], ratio)
        for row, entry, ratio, _ in _suite(results)
        if row.method
    ]


def throughput(path: Path) -> str:
    """A file of benchmarks.throughput: speed against dense beside the ratio of multiply-adds."""
    rows = []
    for entry in read_json(path)["throughput"]:
        cells = [entry["model"], entry["name"], str(entry["batch"]), f"{entry['images_per_second']:,.1f}"]
        fewer, quotient = entry.get("flops_ratio"), entry.get("quotient")
        cells += [f"{entry['speed_ratio']:.2f}", f"{fewer:.2f}" if fewer else "—"]
        rows.append([*cells, f"{quotient:.2f}" if quotient else "—"])
    header = ["model", "", "batch", "images/s", "x dense", "x fewer multiply-adds", "quotient"]
    return table(header, rows, 2)


def growth(results: Path, key: str) -> str:
    """Speed with the number of tokens or layers."""
    found = read_json(results / "papers_cpu.json")[key]
    dense = {row[key]: row for row in found if row["name"] == "dense"}
    rows = [
        [str(row[key]), row["name"], f"{row['images_per_second']:,.1f}", f"{row['speed_ratio']:.2f}"]
        + [f"{dense[row[key]]['flops'] / row['flops']:.2f}", f"{row['memory']['per_image'] / 1e6:,.1f}"]
        for row in found
    ]
    return table([key, "model", "images/s", "x dense", "x fewer multiply-adds", "MB/image"], rows, 2)


def training_steps(results: Path) -> str:
    """Training steps beside the dense one."""
    rows = [
        [row["model"], row["name"], str(row["batch"]), f"{1000 * row['seconds']:,.0f}"]
        + [f"{1 / row['speed_ratio']:.2f}", f"{row['memory']['per_image'] / 1e6:,.1f}"]
        for row in read_json(results / "papers_cpu.json")["training"]
    ]
    return table(["model", "step", "batch", "ms", "x the dense step's time", "MB/image"], rows, 2)


def dense_head(results: Path, shown: Callable[[Mapping[str, Any]], bool]) -> str:
    """How far a dense head's maps of slimmed models are from the dense model's; the rows that are shown."""
    rows = [
        [row["method"], f"{row['rate']:g}", f"{row['flops_share']:.2f}", f"{row['mae']:.3f} ± {row['mae_stderr']:.3f}"]
        + [f"{row['iou']:.2f} ± {row['iou_stderr']:.2f}"]
        for row in sorted(read_json(results / "saliency.json")["rows"], key=lambda row: (-row["rate"], row["mae"]))
        if shown(row)
    ]
    header = ["method", "keep rate", "share of the multiply-adds", "mean absolute error", "IoU at 0.5"]
    return table(header, rows)


def segmentation(results: Path) -> str:
    """The linear probe's mIoU on slimmed features."""
    rows = []
    for row in probe.in_order(read_json(results / "segmentation.json")["rows"]):
        of_tasks = [cell for task in ("kinds", "objects") for cell in probe.cells(row, task)]
        rows.append([row["method"], f"{row['rate']:g}", f"{row['flops_share']:.2f}", *of_tasks])
    columns = ["kinds: mIoU, %", "less dense", "objects: mIoU, %", "less dense"]
    return table(["method", "keep rate", "share of the multiply-adds", *columns], rows)


def own_parts(results: Path) -> str:
    """Which share of a slimmed model's multiply-adds the method itself is, by image side, in closed form."""
    sides = {side: (side // 14) ** 2 for side in (224, 392, 518, 1022)}
    rows = []
    for method in ("tome", "atc", "coverage", "kmedoids", "sinkhorn", "dpcknn"):
        costs = [slim.flops(resolution.build(method, side, 0.7)) for side in sides]
        rows.append([method, resolution.QUADRATIC[method], *[f"{100 * c.method / c.total:.1f}" for c in costs]])
    return table(["method", "what grows with the square", *[f"{n:,} patches, %" for n in sides.values()]], rows, 2)


def resolutions(results: Path) -> str:
    """What larger images cost, of the methods that were measured at every size."""
    found = read_json(results / "resolution.json")["rows"]
    at = {(row["side"], row["method"]): row for row in found}
    sides = sorted({row["side"] for row in found})
    methods = [name for name in resolution.METHODS if all((side, name) in at for side in sides)]
    rows = []
    for side in sides:
        dense = at[side, "dense"]
        for row in (at[side, name] for name in methods):
            cells = [str(side), f"{row['patches']:,}", row["method"], f"{row['flops'] / 1e9:.1f}"]
            cells += [f"{row['flops'] / dense['flops']:.2f}", f"{row['cpu_seconds']:.2f}"]
            cells += [f"{row['cpu_seconds'] / dense['cpu_seconds']:.2f}", f"{row['peak_mib']:,.0f}"]
            rows.append([*cells, f"{row['peak_mib'] / dense['peak_mib']:.2f}"])
    header = ["px", "patches", "method", "G multiply-adds", "share", "CPU s", "share", "peak MiB", "share"]
    return table(header, rows, 3)


def budget_sets(results: Path) -> str:
    """What searches for counts found, at every speed that they were run at."""
    files = {"1.5": "photos_150.jsonl", "1.9": "photos_190.jsonl"}
    return budget.taken_tables({speed: read_rows(results / "budget" / name) for speed, name in files.items()})


def _compares_fills(row: Mapping[str, Any]) -> bool:
    return row["method"].split(",")[0] in ("coverage", "top-k", "random", "ToMe", "ATC")


def _of(folder: str, make: Callable[[Study], str]) -> Callable[[Path], str]:
    return lambda results: make(Study(results / folder))


TABLES: Mapping[str, Callable[[Path], str]] = {
    "photos methods": _of("study_photos", study_tables.methods),
    "photos untuned": _of("study_photos", study_tables.untuned),
    "photos pairs": _of("study_photos", study_tables.pairs),
    "photos choices": _of("study_photos", study_tables.chosen),
    "photos short": lambda results: study_tables.short(Study(results / "study_photos"), Study(results / "study_micro")),
    "photos dense head": lambda results: dense_head(results, lambda row: row["method"] not in saliency.OF_FILLS),
    "fills": lambda results: dense_head(results, lambda row: row["rate"] in (0.7, 0.5) and _compares_fills(row)),
    "segmentation": segmentation,
    "resolution": resolutions,
    "own parts": own_parts,
    "fashion methods": _of("study_micro", study_tables.methods),
    "fashion untuned": _of("study_micro", study_tables.untuned),
    "fashion keep rates": _of("study_micro", study_tables.keep_rates),
    "fashion stages": _of("study_micro", study_tables.stages),
    "fashion questions": _of("study_micro", study_tables.questions),
    "fashion budgets": _of("study_micro", study_tables.budgets),
    "fidelity photos": lambda results: fidelity.tables(results / "fidelity" / "photos_val.jsonl"),
    "fidelity photos, training images": lambda results: fidelity.tables(results / "fidelity" / "photos_train.jsonl"),
    "fidelity photos, why": lambda results: fidelity.tables(results / "fidelity" / "photos_train.jsonl", "why"),
    "fidelity fashion": lambda results: fidelity.tables(results / "fidelity" / "fashion_test.jsonl"),
    "fidelity digits": lambda results: fidelity.tables(results / "fidelity" / "digits_test.jsonl"),
    "papers counts": counts,
    "papers speed": papers_speed,
    "papers training": training_steps,
    "papers tokens": lambda results: growth(results, "tokens"),
    "papers depth": lambda results: growth(results, "depth"),
    "speed methods": lambda results: throughput(results / "cpu_methods.json"),
    "speed few": lambda results: throughput(results / "cpu_methods_few.json"),
    "budget 1.9": lambda results: budget.tables(read_rows(results / "budget" / "photos_190.jsonl")),
    "budget sets": budget_sets,
    "latency": lambda results: latency.tables(read_rows(results / "latency.jsonl")).strip(),
    "export speed": lambda results: read_text(results / "export_speed.md").strip(),
    "export matrix": lambda results: read_text(results / "export_matrix.md").strip(),
    "speed timm": lambda results: throughput(results / "cpu_torch_compile.json"),
}
