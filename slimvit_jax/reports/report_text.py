"""The words of a report: report.json's numbers as Markdown and as a table on the terminal, no claim beyond them."""

from __future__ import annotations

import importlib.resources
import json
from pathlib import Path
from typing import Any

_CLEAR = 2.0  # standard errors from which on a difference is called one


def paper_tables() -> dict[str, Any]:
    """The tables of the papers (paper_tables.json), as their authors print them."""
    return json.loads(importlib.resources.files("slimvit_jax.reports").joinpath("paper_tables.json").read_text("utf-8"))


def markdown(facts: dict[str, Any]) -> str:
    """report.md."""
    rows = facts["rows"]
    slimmed = [row for row in rows if row["name"] not in ("dense", "all kept")]
    parts = [_head(facts), _accuracy(facts, slimmed)]
    if slimmed:
        if "random" in slimmed[0]:
            parts.append(_random(facts, slimmed))
        if len(slimmed[0]["by_stage"]) > 1:
            parts.append(_stages(slimmed))
        if facts["predicts_lives"]:
            parts.append(_paper(facts, rows[0], slimmed))
    parts.append(_pictures(facts))
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(facts: dict[str, Any]) -> str:
    seconds = facts["seconds"]
    stages = ", ".join(f"{stage} {value:,.0f} s" for stage, value in seconds.items())
    at = _trained_at(facts["trained_at"])
    return (
        f"# {facts['name']}: {facts['method']} on {facts['data']['name']}\n\n"
        f"{facts['model']}, {facts['depth']} layers, {facts['patches']} patches, {facts['parameters']:,} parameters, "
        f"{facts['dtype']}. Trained in {len(seconds)} stage{'s' if len(seconds) > 1 else ''}{at}: {stages}, "
        f"{sum(seconds.values()):,.0f} s in all, on {facts['device']}, {facts['machine']}."
    )


def _trained_at(facts: dict[str, Any]) -> str:
    if "sampled_rates" in facts:
        return f" at keep rates drawn anew for every image from {', '.join(map(str, facts['sampled_rates']))}"
    return "".join(f" at {name.replace('_', ' ')} {value}" for name, value in facts.items())


def _accuracy(facts: dict[str, Any], slimmed: list[dict[str, Any]]) -> str:
    images = facts["data"]["images"]
    lines = [
        "## Accuracy and speed",
        "",
        f"{images:,} held-out images ({facts['data']['name']}/{facts['data']['split']}), each counted once; ± is one "
        f"standard error. Speed: batch {facts['batch_size']}, models timed in turns, medians of {facts['rounds']} "
        "rounds. "
        "Multiply-adds in closed form."
        + (" All rows but the first are ONE set of weights: the last stage's." if slimmed else ""),
        "",
        "| keep rate | patches per layer | top-1, % | top-5, % | minus dense, points | images/s | x dense "
        "| multiply-adds, M | x fewer |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    dense = facts["rows"][0]
    for row in facts["rows"]:
        counts = " → ".join(str(n) for n in dict.fromkeys(row["token_counts"]))
        lines.append(
            f"| {_label(row)} | {counts} | {_share(row['top1'], row['top1_stderr'])} | {100 * row['top5']:.2f} "
            f"| {_points(row.get('minus_dense'))} | {row['images_per_second']:,.0f} | {row['speed_ratio']:.2f} "
            f"| {row['flops'] / 1e6:,.1f} | {dense['flops'] / row['flops']:.2f} |"
        )
    if slimmed:
        lines += ["", _verdict(slimmed, images)]
    return "\n".join(lines)


def _verdict(slimmed: list[dict[str, Any]], images: int) -> str:
    apart = [r for r in slimmed if _clear(r["minus_dense"])]
    text = f"One image is {100 / images:.2g} points. "
    if not apart:
        return (
            text + f"No keep rate differs from the dense model by {_CLEAR:g} standard errors: "
            "these images do not tell them apart."
        )
    named = ", ".join(f"{_label(r)} ({_points(r['minus_dense'])} points)" for r in apart)
    return (
        text
        + f"Apart from the dense model by {_CLEAR:g} standard errors or more: {named}; the others are not told apart."
    )


def _random(facts: dict[str, Any], slimmed: list[dict[str, Any]]) -> str:
    seeds = "1 seed" if facts["seeds"] == 1 else f"{facts['seeds']} seeds"
    lines = [
        "## The model's lives beside random ones",
        "",
        f"The same budgets with patches ranked at random, {seeds}; the lead of the model's order is paired by image. "
        "On the final weights random orders are at a disadvantage: these weights were trained under the model's order; "
        "the dense weights have seen no order at all.",
        "",
        "| keep rate | the model's, % | random, final weights, % | lead, points | random, dense weights, % "
        "| lead, points |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in slimmed:
        first, second = row["random"], row["random_on_dense_weights"]
        lines.append(
            f"| {_label(row)} | {_share(row['top1'], row['top1_stderr'])} | {_share(first['top1'], first['stderr'])} "
            f"| {_points(first['learned_minus_random'])} | {_share(second['top1'], second['stderr'])} "
            f"| {_points(second['learned_minus_random'])} |"
        )
    for key, what in (("random", "on the same weights"), ("random_on_dense_weights", "on the dense weights")):
        ahead: list[str] = []
        behind: list[str] = []
        unclear: list[str] = []
        for row in slimmed:
            lead = row[key]["learned_minus_random"]
            (unclear if not _clear(lead) else ahead if lead["difference"] > 0 else behind).append(_label(row))
        said = []
        for rates, words in (
            (ahead, "the model's lives lead at"),
            (behind, "random lives lead at"),
            (unclear, "undecided at"),
        ):
            if rates:
                said.append(f"{words} {', '.join(rates)}")
        lines += ["", f"Against random lives {what}, by {_CLEAR:g} standard errors: {'; '.join(said)}."]
    return "\n".join(lines)


def _stages(slimmed: list[dict[str, Any]]) -> str:
    final = next(iter(slimmed[0]["by_stage"]))
    stages = [name for name in slimmed[0]["by_stage"] if name != final] + [final]
    lines = ["## Stage by stage", "", "Top-1 in % of the slimmed model after each stage.", ""]
    lines += ["| keep rate | " + " | ".join(stages) + " |", "|---|" + "---:|" * len(stages)]
    for row in slimmed:
        lines.append(f"| {_label(row)} | " + " | ".join(f"{100 * row['by_stage'][s]:.2f}" for s in stages) + " |")
    return "\n".join(lines)


def _paper(facts: dict[str, Any], dense: dict[str, Any], slimmed: list[dict[str, Any]]) -> str:
    table = paper_tables()["table3_keep_rate"]
    paper = {
        f"{rate:g}": {
            "drop": table["top1"][i] - table["top1"][0],
            "flops": table["flops"][0] / table["flops"][i],
            "speed": table["throughput"][i] / table["throughput"][0],
        }
        for i, rate in enumerate(table["keep_rate"])
    }
    lines = [
        "## The paper's figures",
        "",
        f"Not measured here: Table III of the life regression paper, {table['backbone']} on ImageNet-1k (1,000 "
        "classes, 224 x 224), throughput on an Nvidia Quadro P6000. Ours is another data set, model and "
        "machine, so the columns show the same quantities and are no comparison.",
        "",
        "| keep rate | top-1 change, ours | top-1 change, paper | x fewer multiply-adds, ours | paper | x speed, ours "
        "| paper |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in slimmed:
        theirs = paper.get(row["name"])
        cells = [f"{theirs['drop']:+.1f}", f"{theirs['flops']:.2f}", f"{theirs['speed']:.2f}"] if theirs else ["—"] * 3
        lines.append(
            f"| {_label(row)} | {_points(row['minus_dense'])} | {cells[0]} | {dense['flops'] / row['flops']:.2f} "
            f"| {cells[1]} | {row['speed_ratio']:.2f} | {cells[2]} |"
        )
    return "\n".join(lines)


def _pictures(facts: dict[str, Any]) -> str:
    captions = {
        "speed": "Accuracy against measured speed; bars are one standard error.",
        "lives": "Sample images, the life (or score) of every patch, and what is kept after each drop: kept light, "
        "dropped dark.",
        "groups": "Sample images, and which of their patches became one token, in their mean colour.",
        "weights": "Weight of a patch by layer: the step that inference takes, its smooth stand-ins, and what training "
        "saw.",
    }
    there = [(kind, path) for kind, path in facts.get("figures", {}).items() if kind in captions]
    if not there:
        return ""
    return "## Pictures\n\n" + "\n\n".join(f"![{kind}]({path})\n\n{captions[kind]}" for kind, path in there)


def _label(row: dict[str, Any]) -> str:
    return {"dense": "dense", "all kept": "1 (final weights)"}.get(row["name"], row["name"])


def _share(share: float, error: float | None) -> str:
    return f"{100 * share:.2f}" + ("" if error is None else f" ± {100 * error:.2f}")


def _points(difference: dict[str, float] | None) -> str:
    if difference is None:
        return ""
    return f"{100 * difference['difference']:+.2f} ± {100 * difference['stderr']:.2f}"


def _clear(difference: dict[str, float]) -> bool:
    return difference["difference"] != 0 and abs(difference["difference"]) >= _CLEAR * difference["stderr"]


def print_summary(facts: dict[str, Any], workdir: Path) -> None:
    """The one table at the end of a run."""
    from slimvit_jax.reports import tables

    title = f"{facts['name']}: {facts['data']['images']:,} held-out images of {facts['data']['name']}"
    table = tables.table(
        "keep rate", "top-1, %", "random lives, %", "images/s", "x dense", "mult-adds", "x fewer", title=title
    )
    dense = facts["rows"][0]
    for row in facts["rows"]:
        chance = row.get("random")
        table.add_row(
            _label(row).replace(" weights", ""),
            _share(row["top1"], row["top1_stderr"]),
            _share(chance["top1"], chance["stderr"]) if chance else "",
            f"{row['images_per_second']:,.0f}",
            f"{row['speed_ratio']:.2f}",
            f"{row['flops'] / 1e6:,.1f} M",
            f"{dense['flops'] / row['flops']:.2f}",
        )
    tables.show(table)
    tables.show(f"report: {workdir / 'report.md'}")
