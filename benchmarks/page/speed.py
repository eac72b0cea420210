"""The page's tables of measured speed: throughput.py's suite of the papers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.page.cells import table
from benchmarks.page.counts import TABLES
from slimvit_jax.analysis.paper_rows import PaperRow, paper_rows, paper_speedup
from slimvit_jax.errors import SlimError

Result = Mapping[str, Any]


def read_all(folder: Path) -> dict[str, Result]:
    """Every JSON object of the folder, by file name; a file that is none is an error."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise SlimError(f"{path} is no JSON: {error}") from error
        if isinstance(content, dict):
            found[path.name] = content
    return found


def suites(results: Mapping[str, Result]) -> dict[str, Result]:
    """Those of `--suite=papers`."""
    return {name: result for name, result in results.items() if result.get("suite") == "papers"}


def about(name: str, result: Result, link: str) -> str:
    """Which machine, which command, and whether all of it was measured; `link` leads to the folder."""
    machine = result.get("machine", {})
    command = result.get("command")
    parts = [f"[`{name}`]({link}/{name})" + (f": `{command}`" if command else "")]
    if machine:
        devices = ", ".join(machine.get("devices", []))
        parts.append(f"{machine.get('processor', '?')}, {machine.get('cores', '?')} cores ({devices})")
        parts.append(str(machine.get("date", ""))[:10])
    text = "; ".join(part for part in parts if part)
    done = result.get("groups")
    if done and done["measured"] < done["planned"]:
        text += f". **{done['measured']} of {done['planned']} groups**: the run was cut short"
    notes = "".join(f"\n\nNote: {note}." for note in result.get("notes", []))
    return f"{text}.{notes}"


def speed_rows(result: Result, dtype: str, batch: int) -> list[tuple[PaperRow, Result, Result]]:
    """(row, its measurement, the dense model's in the same turns) of every row that was measured."""
    entries = [e for e in result["throughput"] if (e["dtype"], e["batch"]) == (dtype, batch)]
    dense = {e["model"]: e for e in entries if e["name"] == "dense"}
    where = {tuple(named): e for e in entries for named in e.get("rows", ())}
    found = [(row, where[row.table, row.label]) for row in paper_rows() if (row.table, row.label) in where]
    return [(row, entry, dense[entry["model"]]) for row, entry in found]


def settings(result: Result) -> list[tuple[str, int]]:
    """(dtype, batch size) of the suite's throughput, in the order measured."""
    return list(dict.fromkeys((e["dtype"], e["batch"]) for e in result["throughput"]))


def rows_of_papers(result: Result, dtype: str, batch: int) -> str:
    """Images per second of every row, and the speed-up beside the paper's and the ratio of multiply-adds."""
    entries = [e for e in result["throughput"] if (e["dtype"], e["batch"]) == (dtype, batch)]
    timm = {e["model"]: e for e in entries if e["name"] == "timm"}
    lines, seen = [], set()
    for row, entry, dense in speed_rows(result, dtype, batch):
        seen.add((row.table, row.label))
        paper = paper_speedup(row)
        theirs = row.figures.get("throughput")
        ratio = dense["flops"] / entry["flops"]
        eager = timm.get(entry["model"])
        lines.append(
            [
                TABLES[row.table],
                row.label,
                f"{entry['images_per_second']:,.1f}",
                f"{entry['speed_ratio']:.2f}" if row.method else "",
                f"{paper:.2f}" if paper else "—" if row.method else "",
                f"{ratio:.2f}" if row.method else "",
                f"{entry['images_per_second'] / eager['images_per_second']:.2f}" if eager else "—",
                f"{theirs:,.1f}" if theirs else "—",
            ]
        )
    if not lines:
        return "Not measured yet."
    missing = [row.label for row in paper_rows() if (row.table, row.label) not in seen]
    header = ["table", "row", "images/s", "x dense", "paper: x dense", "x fewer multiply-adds", "x timm dense"]
    text = table([*header, "paper: images/s (P6000)"], lines, 2)
    return text + (f"\n\n{len(missing)} rows are not measured yet: {', '.join(missing)}." if missing else "")


def said_of_speed(result: Result, dtype: str, batch: int) -> str:
    """How ours compares with the papers' speed-ups, from the numbers."""
    found = [(row, entry, dense, paper_speedup(row)) for row, entry, dense in speed_rows(result, dtype, batch)]
    own = [(r, e["speed_ratio"], d["flops"] / e["flops"], p) for r, e, d, p in found if r.method == "life_regression"]
    if not own:
        return ""
    below = [f"{r.label} ({ours:.2f}, paper {p:.2f})" for r, ours, _, p in own if p and ours < p]
    share = [ours / ratio for _, ours, ratio, _ in own]
    printed = [(p, ratio) for _, _, ratio, p in own if p]
    text = (
        f"Life regression's rows measured here ({len(own)}) turn {min(share):.2f} to {max(share):.2f} of the saved "
        "multiply-adds into speed (speed-up over ratio of multiply-adds)"
    )
    if printed:
        low, high = min(p / r for p, r in printed), max(p / r for p, r in printed)
        text += f"; the paper's figures over our ratio of multiply-adds give {low:.2f} to {high:.2f}"
    text += f". Below the paper's speed-up: {'; '.join(below)}." if below else ". None is below the paper's speed-up."
    return text + " The paper's counting of its predictor is in its FLOPs; ours costs next to nothing."


def training(rows: Sequence[Result]) -> str:
    """Training steps beside the dense step."""
    if not rows:
        return "Not measured yet."
    lines = [
        [row["model"], str(row["batch"]), row["dtype"], row["name"], f"{1000 * row['seconds']:,.0f}"]
        + [f"{row['images_per_second']:,.1f}", f"{1 / row['speed_ratio']:.2f}", *_costs(row)]
        for row in rows
    ]
    header = ["model", "batch", "type", "step", "ms", "images/s", "x the dense step's time", "compile, s", "MB/image"]
    return table(header, lines, 4)


def _costs(row: Result) -> list[str]:
    memory, seconds = row.get("memory"), row.get("compile_seconds")
    compiled = "" if seconds is None else f"{seconds:.1f}"
    return [compiled, "" if not memory else f"{memory['per_image'] / 1e6:,.1f}"]


def memory_and_compilation(result: Result, dtype: str, batch: int) -> str:
    """Working memory per image and compile time of every model of the suite."""
    entries = [e for e in result["throughput"] if (e["dtype"], e["batch"]) == (dtype, batch) and e.get("memory")]
    dense = {e["model"]: e for e in entries if e["name"] == "dense"}
    lines = []
    for entry in entries:
        base = dense.get(entry["model"])
        ratio = entry["memory"]["per_image"] / base["memory"]["per_image"] if base else None
        weights = entry["memory"]["arguments"] / 1e6
        lines.append(
            [
                entry["model"],
                entry["name"],
                *reversed(_costs(entry)),
                f"{ratio:.2f}" if ratio else "",
                f"{weights:,.0f}",
            ]
        )
    if not lines:
        return "Not measured yet."
    return table(
        ["backbone", "row", "MB/image", "compile, s", "x dense MB/image", "MB of weights and images"], lines, 2
    )


def growth(rows: Sequence[Result], key: str) -> str:
    """Images per second and speed-up with "tokens" or "depth"."""
    if not rows:
        return "Not measured yet."
    dense = {row[key]: row for row in rows if row["name"] == "dense"}
    lines = []
    for row in rows:
        ratio = dense[row[key]]["flops"] / row["flops"] if row[key] in dense else 1.0
        place = f"{row['tokens']} ({row['side']} px, patch {row['patch']})" if key == "tokens" else str(row["depth"])
        lines.append([place, row["name"], f"{row['images_per_second']:,.1f}", f"{row['speed_ratio']:.2f}"])
        lines[-1] += [f"{ratio:.2f}", *_costs(row)]
    header = [key, "model", "images/s", "x dense", "x fewer multiply-adds", "compile, s", "MB/image"]
    return table(header, lines, 2)
