"""Turns results/ into docs/results.md and its pictures, and into the study's table in README.md.

    python -m benchmarks.report [--results results] [--out docs/results.md]

The README is the one beside the page's folder; it is left alone where it has no place for the table, which is between
<!-- study --> and <!-- /study -->.

Every number of the page is read from a file of results/ or computed by `slim.flops`; every sentence that compares is
made from the numbers. What is not measured yet says so, with the command that measures it.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from benchmarks.page import budgets, counts, lives, others, plots, readme, speed, study, verdicts
from benchmarks.page.cells import Study
from benchmarks.study_cells import all_cells
from slimvit_jax.analysis.report_text import between
from slimvit_jax.errors import SlimError
from slimvit_jax.files import write_text

SEEDS = (0, 1, 2)
ROOT = Path(__file__).resolve().parent.parent
COMMANDS = {
    "study_micro": "python -m benchmarks.study --config=configs/study_fashion.py --workdir=results/study_micro",
    "study_small": "python -m benchmarks.study --config=configs/study_fashion_small.py --workdir=results/study_small",
    "speed": "python -m benchmarks.throughput --suite=papers --timm --rounds 5",
}
Picture = Callable[[str, Path | None, str], str]


def main(argv: list[str] | None = None) -> int:
    """Writes the page; exit status 2 for results that cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description="Makes docs/results.md.")
    parser.add_argument("--results", type=Path, default=ROOT / "results", metavar="DIR")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results.md", metavar="FILE")
    args = parser.parse_args(argv)
    try:
        write_text(args.out, page(args.results, args.out.parent))
        update_readme(args.out.parent.parent / "README.md", args.results, args.out.parent)
    except SlimError as error:
        print(f"report: error: {error}", file=sys.stderr)
        return 2
    print(args.out)
    return 0


def page(results: Path, docs: Path) -> str:
    """The page's text; its pictures go to docs/pictures/results/."""
    folder = docs / "pictures" / "results"

    def picture(alt: str, path: Path | None, caption: str) -> str:
        if path is None:
            return ""
        return f"![{alt}]({path.relative_to(docs).as_posix()})\n\n{caption}"

    found = {path.parent.name: Study(path.parent) for path in sorted(results.glob("study_*/study.json"))}
    measured = speed.read_all(results)
    link = os.path.relpath(results, docs)
    parts = [
        "# Results",
        "Made by `python -m benchmarks.report` from the files in `results/`; no number is written by hand. Figures of "
        "papers are quoted from their tables and marked as such.",
    ]
    for name in [*found, *[n for n in ("study_micro",) if n not in found]]:
        parts.append(f"## The study on real images: {name}")
        if name in found:
            parts += study_sections(found[name], folder, picture, link)
        else:
            parts.append(f"Not measured yet: `{COMMANDS[name]}`")
    parts += ["## Multiply-adds and parameters against the papers", counts.counts()]
    parts += ["## Speed against the papers", *speed_sections(speed.suites(measured), folder, picture, link)]
    parts += ["## Other measurements", other_sections(results, measured, docs, link)]
    return "\n\n".join(part for part in parts if part) + "\n"


def update_readme(path: Path, results: Path, docs: Path) -> None:
    """Puts the study at scale micro into the README at `path`, where that has a place for it."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    folder = results / "study_micro"
    if "<!-- study -->" not in text or not (folder / "study.json").exists():
        return
    found = Study(folder)
    ratios, _, machine = measured_speed(found)
    drawn = docs / "pictures" / "results" / f"{folder.name}_accuracy_{'speed' if ratios else 'flops'}.png"
    alt = "Top-1 of every method against its measured speed-up" if ratios else "Top-1 against multiply-adds"
    picture = f"![{alt}]({drawn.relative_to(path.parent).as_posix()})" if drawn.exists() else ""
    write_text(path, between(path.name, text, "study", readme.summary(found, ratios, machine, picture)))


def study_sections(found: Study, folder: Path, picture: Picture, link: str) -> list[str]:
    """Everything about one study."""
    name = found.path.name
    parts = [study.about(found), still_to_do(found)]
    if not found.rows:
        return [*parts, f"No run is finished yet: `{COMMANDS.get(name, COMMANDS['study_micro'])}`"]
    parts += ["### What was to be reached", verdicts.goals(found)]
    parts += ["### Where it differs from the paper", verdicts.differences(found)]
    parts += ["### Methods at matched multiply-adds (Tables I and II)", study.methods(found)]
    cost = plots.accuracy(folder / f"{name}_accuracy_flops.png", found)
    parts.append(picture("Top-1 against multiply-adds", cost, "Top-1 against multiply-adds, every method."))
    ratios, said, _ = measured_speed(found)
    drawn = plots.accuracy(folder / f"{name}_accuracy_speed.png", found, ratios) if ratios else None
    parts.append(picture("Top-1 against measured speed-up", drawn, said) or said)
    parts += ["### Without any tuning", budgets.untuned(found)]
    parts += ["### With the dense model's logits", study.distilled(found)]
    parts += ["### Learned lives against random ones", budgets.margins(found)]
    margins = plots.margins(folder / f"{name}_margins.png", found)
    parts.append(picture("Lead of learned lives", margins, "The lead of learned lives by keep rate."))
    parts += ["### Keep rate (Table III)", study.keep_rates(found)]
    parts += ["### One stage or two (Table IV)", study.stages(found)]
    parts += ["### Temperature (Table V)", study.temperatures(found)]
    drawn = plots.temperatures(folder / f"{name}_temperature.png", found)
    parts.append(picture("Top-1 by temperature", drawn, "Change against U = 1.5, ours and the paper's."))
    parts += ["### One model, any budget", budgets.budgets(found)]
    drawn = plots.budgets(folder / f"{name}_budgets.png", found)
    parts.append(picture("Top-1 by deployed keep rate", drawn, "Each line is one set of weights (mean over seeds)."))
    parts += ["### Questions of our own", study.ablations(found)]
    longer = budgets.long_runs(found)
    parts += ["### Longer runs", longer] if longer else []
    parts += ["### Lives of sample images", *lives_section(found, folder, picture)]
    return [
        *parts,
        f"All runs: [`results.jsonl`]({link}/{name}/results.jsonl), [`study.json`]({link}/{name}/study.json).",
    ]


def still_to_do(found: Study) -> str:
    """Which of the study's runs are missing, by what they are about."""
    base = ConfigDict({"model": {"options": found.model_options()}})
    try:
        planned = [cell.name for cell in all_cells(base, SEEDS)]
    except SlimError:  # a model that the study's own cells do not fit, as in tests
        return ""
    left = [name for name in planned if name not in {row["cell"] for row in found.rows}]
    if not left:
        return f"All {len(planned)} planned runs are done."
    kinds: dict[str, int] = {}
    for name in left:
        group, variant, rate, seed = name.split("/")
        about = f"{group} at {rate}" + ("" if seed == "seed0" else ", further seeds")
        kinds[about] = kinds.get(about, 0) + 1
    said = "; ".join(f"{about} ({count})" for about, count in kinds.items())
    command = f"`{COMMANDS.get(found.path.name, COMMANDS['study_micro'])}`"
    return f"**{len(left)} of {len(planned)} planned runs are still to be done**: {said}. {command} does them."


def measured_speed(found: Study) -> tuple[dict[tuple[str, float], float], str, str]:
    """Speed-ups of the study's own models, a sentence about them, and the machine."""
    path = found.path / "speed.json"
    if not path.exists():
        command = f"python -m benchmarks.study_speed results/{found.path.name}"
        return {}, f"Speed of these models is not measured yet: `{command}`", ""
    result = speed.read_all(found.path)["speed.json"]
    ratios = {(row["method"], row["keep_rate"]): row["speed_ratio"] for row in result["rows"]}
    machine = "{processor}, {cores} cores, ".format(**result["machine"]) + ", ".join(result["machine"]["devices"])
    text = (
        f"Top-1 against the measured speed-up of the same models (`{result['command']}`, batch {result['batch']}, "
        f"{machine})."
    )
    return ratios, text, machine


def lives_section(found: Study, folder: Path, picture: Picture) -> list[str]:
    """Pictures of lives, or why there are none."""
    try:
        drawn = lives.draw(found, folder, found.path.name)
    except SlimError as error:
        return [f"Not drawn: {error}."]
    if not drawn:
        return [f"Not drawn: the study has not saved `{lives.WEIGHTS}` yet."]
    about = (
        "The first images of the evaluation split, one of each class: their lives, clamped to the layers they are used "
        "in, and what is kept after each drop (kept light, dropped dark). Above each: its class → the predicted one."
    )
    curve = "Weight of a patch by layer in training, the step that inference takes, and the mean over real patches."
    return [picture("Lives", drawn["lives"], about), picture("Weights by layer", drawn["weights"], curve)]


def speed_sections(suites: Mapping[str, Any], folder: Path, picture: Picture, link: str) -> list[str]:
    """Every file of the papers' suite."""
    if not suites:
        return [f"Not measured yet: `{COMMANDS['speed']}`"]
    parts: list[str] = []
    for name, result in suites.items():
        stem = name.removesuffix(".json")
        parts += [f"### {stem}", speed.about(name, result, link)]
        for dtype, batch in speed.settings(result):
            parts.append(f"#### Rows of the papers' tables, {dtype}, batch {batch}")
            parts += [speed.said_of_speed(result, dtype, batch), speed.rows_of_papers(result, dtype, batch)]
            rows = [
                (f"{row.label}, {row.table.split('_')[0]}", speed.paper_speedup(row), entry["speed_ratio"], ratio)
                for row, entry, dense in speed.speed_rows(result, dtype, batch)
                if row.method and (ratio := dense["flops"] / entry["flops"])
            ]
            drawn = plots.speedups(folder / f"{stem}_{dtype}_{batch}_speedups.png", rows)
            parts.append(
                picture(
                    "Speed-ups",
                    drawn,
                    "Speed-up over the dense model: ours, the paper's, and what the saved multiply-adds would give.",
                )
            )
            parts += [f"#### Memory and compile time, {dtype}, batch {batch}", MEMORY]
            parts.append(speed.memory_and_compilation(result, dtype, batch))
        parts += ["#### Training steps", TRAINING, speed.training(result["training"])]
        for key in ("tokens", "depth"):
            parts += [f"#### Growth with {key}", speed.growth(result[key], key)]
            drawn = plots.growth(folder / f"{stem}_{key}.png", result[key], key)
            parts.append(picture(f"Growth with {key}", drawn, f"Images per second and speed-up by {key}."))
    return parts


MEMORY = (
    "MB per image are the temporary buffers alive at the peak of the compiled program, by XLA's own plan "
    "(`memory_analysis`), over the batch size: activations and copies of weights, not the weights. Where a row has "
    "what its dense model has, the peak lies in the layers that still compute all patches."
)
TRAINING = (
    "One AdamW step of the training loop. *Stage 1* trains the predictor alone, *stage 2* the backbone alone; the last "
    "two carry a frozen dense teacher. MB per image as above."
)


def other_sections(results: Path, measured: Mapping[str, Any], docs: Path, link: str) -> str:
    """Links to what has a page of its own, and a line for every other file."""
    lines = []
    for report in sorted(results.glob("*/report.md")):
        first = report.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
        lines.append(f"* [{first}]({link}/{report.parent.name}/report.md)")
    if (docs / "scaling.md").exists():
        lines.append("* [Scaling over devices](scaling.md): memory per device and communication, computed")
    return "\n".join([*lines, others.others(measured, link)]).strip() or "Nothing else."


if __name__ == "__main__":
    sys.exit(main())
