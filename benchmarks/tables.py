"""The tables of docs/results.md and README.md, each made from files of results/ alone.

`TABLES` has them by name; a page says where one stands (`benchmarks.report`). A table has no sentences: those are
written by a person around it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import slimvit_jax as slim
from benchmarks import budget, fidelity, latency, resolution, saliency
from benchmarks import segmentation as probe
from benchmarks.command import read_rows
from benchmarks.paper_rows import ROUNDING, count, paper_rows, paper_speedup
from benchmarks.results import LIFE, RECOMMENDED, Stat, Study, difference, label, paired, pool, table
from slimvit_jax.errors import SlimError
from slimvit_jax.files import read_text
from slimvit_jax.reports.report_text import paper_tables

PAPER_TABLES = {
    "table1_deit": "Life regression, Table I",
    "table2_vit": "Life regression, Table II",
    "table3_keep_rate": "Life regression, Table III (DeiT-S)",
    "sit": "SiT",
    "lvvit": "LV-ViT",
}
#: Groups of the study on Fashion-MNIST that ask one question each.
QUESTIONS = (
    "training",
    "train_tokens",
    "search",
    "schedule",
    "rates",
    "gradient",
    "initialisation",
    "gate",
    "temperature",
)
RATES = (0.9, 0.8, 0.7, 0.5)
AS_LONG = "dense, tuned as long"


def percent(stat: Stat | None) -> str:
    """A cell of a table."""
    return "—" if stat is None else stat.text()


def read(path: Path) -> Any:
    """A JSON file.

    Raises:
      SlimError: it is missing, or no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SlimError(f"{path}: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise SlimError(f"{path} is no JSON: {error}") from error


def speeds(study: Study) -> dict[tuple[str, float], float]:
    """(variant, keep rate) -> times as fast as the dense model; {} where it is not measured."""
    path = study.path / "speed.json"
    rows = read(path)["rows"] if path.exists() else []
    return {(row.get("variant") or row["method"], row["keep_rate"]): row["speed_ratio"] for row in rows}


def best_first(study: Study, group: str, rates: Sequence[float]) -> list[str]:
    """Variants by their accuracy at the first rate, then at the next one."""
    key = lambda name: [-(stat.mean if (stat := study.stat(group, name, rate)) else 0.0) for rate in rates]
    return sorted((name for name in study.variants(group) if name != "dense"), key=key)


def methods(study: Study, rates: Sequence[float] = (0.7, 0.5)) -> str:
    """Accuracy of every variant at equal multiply-adds, the distance from dense, and the measured speed.

    The distance is from the dense model tuned on for as long, image by image, where that is known; else from the one
    before. On Fashion-MNIST with life regression as trained by RECOMMENDED too, which stands in another group there.
    """
    faster, start = speeds(study), study.facts["dense"]
    before, dense = study.hits("untuned", "dense", 1.0), study.hits("main", "dense", 1.0)
    blank = [paired(before, dense), "1.00", "1.00", "—"]
    rows = [["dense, before", *[cell for _ in rates for cell in (percent(study.dense), *blank)]]]
    for again in study.facts.get("dense_again", ()):
        cells = [percent(Stat((again["dense"]["accuracy"],))), "—", *blank[1:]]
        rows.append(["dense, trained again", *[cell for _ in rates for cell in cells]])
    if dense is not None:
        blank = ["—", "1.00", "1.00", str(len(study.by_seed("main", "dense", 1.0)))]
        rows += [[AS_LONG, *[cell for _ in rates for cell in (percent(study.stat("main", "dense", 1.0)), *blank)]]]
    dense = before if dense is None else dense
    kinds = [("main", name, label(name)) for name in best_first(study, "main", rates)]
    if study.by_seed("training", RECOMMENDED, rates[0]):
        kinds.append(("training", RECOMMENDED, f"{label(LIFE)}, {RECOMMENDED}"))
    first = {kind: study.stat(*kind[:2], rates[0]) for kind in kinds}
    for kind in sorted(kinds, key=lambda kind: -(stat.mean if (stat := first[kind]) else 0.0)):
        group, name, called = kind
        cells = [f"**{called}**" if called.startswith(label(LIFE)) else called]
        for rate in rates:
            found = study.by_seed(group, name, rate)
            gap = difference(found, dict.fromkeys(found, study.dense))
            cells += [percent(pool(found))]
            if dense is not None:
                cells += [paired(study.hits(group, name, rate), dense)]
            else:
                cells += [gap.text() if gap else "—"]
            flops = study.stat(group, name, rate, key="flops")
            cells += [f"{start['flops'] / flops.mean:.2f}" if flops else "—"]
            same = LIFE if name == RECOMMENDED else name  # trained otherwise, of the same speed
            cells += [f"{faster[same, rate]:.2f}" if found and (same, rate) in faster else "—"]
            cells += [str(len(found)) if found else "—"]
        rows.append(cells)
    heads = ("top-1, %", "minus dense", "x fewer multiply-adds", "x images/s", "seeds")
    return table(["method", *[f"{rate:g}: {head}" for rate in rates for head in heads]], rows)


def untuned(study: Study) -> str:
    """Methods under the dense weights as they are; the distance from dense where the outcome per image is known."""
    rates = [rate for rate in study.train_rates("untuned") if rate < 1]
    order = [0.7, *[rate for rate in rates if rate != 0.7]]
    dense, rows = study.hits("untuned", "dense", 1.0), []
    for name in best_first(study, "untuned", order):
        rows.append([label(name)])
        for rate in rates:
            rows[-1].append(percent(study.stat("untuned", name, rate)))
            if dense is not None:
                rows[-1].append(paired(study.hits("untuned", name, rate), dense))
    heads = ("top-1, %",) if dense is None else ("top-1, %", "minus dense")
    return table(["method", *[f"{rate:g}: {head}" for rate in rates for head in heads]], rows)


def pairs(study: Study, rates: Sequence[float] = (0.7, 0.5)) -> str:
    """Life regression by coverage, squeezed, minus every other variant, image by image."""
    ours = {"untuned": "coverage lives, squeezed", "main": f"{LIFE}, squeezed"}
    kinds = [(group, rate) for group in ours for rate in rates]
    rows = []
    for name in dict.fromkeys([*best_first(study, "main", rates), *best_first(study, "untuned", rates)]):
        if name not in ours.values():
            both = [(study.hits(group, ours[group], rate), study.hits(group, name, rate)) for group, rate in kinds]
            rows.append([label(name), *[paired(own, other) for own, other in both]])
    named = {"untuned": "untuned", "main": "tuned"}
    return table(["life regression, squeezed, minus", *[f"{named[group]}, {rate:g}" for group, rate in kinds]], rows)


def chosen(study: Study) -> str:
    """Experiments judged on held-out training images."""
    rate = study.train_rates("choose")[0]
    dense = study.hits("choose", "dense", 1.0)
    rows = []
    for name in best_first(study, "choose", [rate]):
        hits = study.hits("choose", name, rate)
        rows.append([name, percent(study.stat("choose", name, rate)), paired(hits, dense)])
    return table([f"training, at {rate:g}", "held out: top-1, %", "minus dense"], rows)


def keep_rates(study: Study) -> str:
    """Table III, ours and the paper's."""
    theirs = paper_tables()["table3_keep_rate"]
    rows = []
    for rate in [rate for rate in RATES if study.by_seed("main", LIFE, rate)]:
        found = study.by_seed("main", LIFE, rate)
        gap = difference(found, dict.fromkeys(found, study.dense))
        flops = study.stat("main", LIFE, rate, key="flops")
        assert gap is not None and flops is not None
        row = [f"{rate:g}", percent(pool(found)), gap.text(), f"{study.facts['dense']['flops'] / flops.mean:.2f}"]
        if rate in theirs["keep_rate"]:
            i = theirs["keep_rate"].index(rate)
            printed = theirs["top1"][i] - theirs["top1"][0]
            row += [f"{printed:+.1f}", f"{theirs['flops'][0] / theirs['flops'][i]:.2f}"]
        else:
            row += ["—", "—"]
        rows.append(row)
    header = ["keep rate", "top-1, %", "minus dense", "x fewer multiply-adds"]
    return table([*header, "paper: minus dense", "paper: x fewer"], rows)


def stages(study: Study) -> str:
    """Table IV, ours and the paper's."""
    theirs = paper_tables()["table4_stages"]
    rows = []
    for i, rate in enumerate(theirs["keep_rate"]):
        single, two = (study.by_seed("stages", name, rate) for name in ("single stage", "two stages"))
        gap = difference(two, single)
        printed = theirs["two_top1"][i] - theirs["single_top1"][i]
        rows.append([f"{rate:g}", percent(pool(single)), percent(pool(two)), gap.text() if gap else "—"])
        rows[-1].append(f"{printed:+.1f}")
    return table(["keep rate", "single stage, %", "two stages, %", "two - single", "paper: two - single"], rows)


def questions(study: Study) -> str:
    """Every question of the study, its variants best first."""
    rows = []
    for group in QUESTIONS:
        for rate in study.train_rates(group):
            for name in best_first(study, group, [rate]):
                learned = study.by_seed(group, name, rate)
                if learned:
                    lead = difference(learned, study.by_seed(group, name, rate, lives="random"))
                    rows.append([group, name, f"{rate:g}", percent(pool(learned)), lead.text() if lead else "—"])
    return table(["question", "variant", "keep rate", "top-1, %", "learned minus random lives"], rows, 2)


def budgets(study: Study) -> str:
    """One set of weights at other keep rates than the one trained at."""
    rows = []
    for group in ("main", "training"):
        for name in study.variants(group):
            for rate in study.train_rates(group):
                found = {r: study.stat(group, name, rate, keep_rate=r) for r in RATES}
                if sum(stat is not None for stat in found.values()) > 1:
                    cells = [f"**{s.text()}**" if r == rate and s else percent(s) for r, s in found.items()]
                    rows.append([label(name), f"{rate:g}", *cells])
    return table(["weights", "trained at", *[f"at {rate:g}, %" for rate in RATES]], rows, 2)


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
    entries = read(results / "papers_cpu.json")["throughput"]
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
    for entry in read(path)["throughput"]:
        cells = [entry["model"], entry["name"], str(entry["batch"]), f"{entry['images_per_second']:,.1f}"]
        fewer, quotient = entry.get("flops_ratio"), entry.get("quotient")
        cells += [f"{entry['speed_ratio']:.2f}", f"{fewer:.2f}" if fewer else "—"]
        rows.append([*cells, f"{quotient:.2f}" if quotient else "—"])
    header = ["model", "", "batch", "images/s", "x dense", "x fewer multiply-adds", "quotient"]
    return table(header, rows, 2)


def growth(results: Path, key: str) -> str:
    """Speed with the number of tokens or layers."""
    found = read(results / "papers_cpu.json")[key]
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
        for row in read(results / "papers_cpu.json")["training"]
    ]
    return table(["model", "step", "batch", "ms", "x the dense step's time", "MB/image"], rows, 2)


def short(study: Study, other: Study) -> str:
    """README's one table: the photographs' main comparison, Fashion-MNIST's figures in the last columns."""
    faster, longer, rows = speeds(study), study.stat("main", "dense", 1.0), []
    if longer is not None:
        rows = [[AS_LONG, *(2 * [percent(longer), "1.00"]), *(2 * [percent(other.stat("main", "dense", 1.0))])]]
    for name in best_first(study, "main", (0.7, 0.5)):
        cells = [f"**{label(name)}**" if name.startswith(LIFE) else label(name)]
        for rate in (0.7, 0.5):
            stat = study.stat("main", name, rate)
            cells += [percent(stat), f"{faster[name, rate]:.2f}" if (name, rate) in faster else "—"]
        second = ("training", RECOMMENDED) if name == f"{LIFE}, hard masks" else ("main", name)
        rows.append([*cells, *[percent(other.stat(*second, rate)) for rate in (0.7, 0.5)]])
    header = ["method", "0.7: top-1, %", "x images/s", "0.5: top-1, %", "x images/s"]
    return table([*header, "Fashion-MNIST 0.7", "0.5"], rows)


def dense_head(results: Path, shown: Callable[[Mapping[str, Any]], bool]) -> str:
    """How far a dense head's maps of slimmed models are from the dense model's; the rows that are shown."""
    rows = [
        [row["method"], f"{row['rate']:g}", f"{row['flops_share']:.2f}", f"{row['mae']:.3f} ± {row['mae_stderr']:.3f}"]
        + [f"{row['iou']:.2f} ± {row['iou_stderr']:.2f}"]
        for row in sorted(read(results / "saliency.json")["rows"], key=lambda row: (-row["rate"], row["mae"]))
        if shown(row)
    ]
    header = ["method", "keep rate", "share of the multiply-adds", "mean absolute error", "IoU at 0.5"]
    return table(header, rows)


def segmentation(results: Path) -> str:
    """The linear probe's mIoU on slimmed features."""
    rows = []
    for row in probe.in_order(read(results / "segmentation.json")["rows"]):
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
    found = read(results / "resolution.json")["rows"]
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
    "photos methods": _of("study_photos", methods),
    "photos untuned": _of("study_photos", untuned),
    "photos pairs": _of("study_photos", pairs),
    "photos choices": _of("study_photos", chosen),
    "photos short": lambda results: short(Study(results / "study_photos"), Study(results / "study_micro")),
    "photos dense head": lambda results: dense_head(results, lambda row: row["method"] not in saliency.OF_FILLS),
    "fills": lambda results: dense_head(results, lambda row: row["rate"] in (0.7, 0.5) and _compares_fills(row)),
    "segmentation": segmentation,
    "resolution": resolutions,
    "own parts": own_parts,
    "fashion methods": _of("study_micro", methods),
    "fashion untuned": _of("study_micro", untuned),
    "fashion keep rates": _of("study_micro", keep_rates),
    "fashion stages": _of("study_micro", stages),
    "fashion questions": _of("study_micro", questions),
    "fashion budgets": _of("study_micro", budgets),
    "fidelity photos": lambda results: fidelity.tables(results / "fidelity" / "photos_val.jsonl"),
    "fidelity photos, training images": lambda results: fidelity.tables(results / "fidelity" / "photos_train.jsonl"),
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
