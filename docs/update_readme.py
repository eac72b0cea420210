"""Puts measured numbers and a picture into README.md, from the files that the measurements left.

    python docs/update_readme.py --run runs/digits --throughput results/*.json

Copies the run's report.json to results/NAME/ and its pictures to docs/pictures/, and rewrites what stands between the
markers <!-- picture --> and <!-- measured --> and their ends. The study's table, between <!-- study --> and its end, is
written by `python -m benchmarks.report`. Numbers that were measured reach the README by no other way.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from slimvit_jax.analysis.report_text import between, paper_tables
from slimvit_jax.errors import SlimError
from slimvit_jax.files import atomic_path, write_text

ROOT = Path(__file__).parent.parent


def main() -> int:
    """Rewrites README.md; exit status 2 for files that are not there."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--run", type=Path, metavar="DIR", help="a run with a report.json")
    parser.add_argument(
        "--throughput", type=Path, nargs="*", default=[], metavar="FILE", help="of benchmarks/throughput.py"
    )
    args = parser.parse_args()
    try:
        text = (ROOT / "README.md").read_text(encoding="utf-8")
        parts = []
        if args.run is not None:
            facts = keep_run(args.run)
            name = facts["name"]
            alt = "Lives of the patches of handwritten digits, and what is kept after each drop"
            caption = "Lives predicted by the model of the first command, and what it keeps: kept light, dropped dark."
            text = between("README.md", text, "picture", f"![{alt}](docs/pictures/{name}_lives.png)\n\n{caption}")
            parts.append(accuracy(facts))
        for file in args.throughput:
            parts.append(throughput(json.loads(file.read_text(encoding="utf-8")), file))
        if parts:
            text = between("README.md", text, "measured", "\n\n".join(parts))
        write_text(ROOT / "README.md", text)
    except (SlimError, OSError, json.JSONDecodeError) as error:
        print(f"update_readme.py: {error}", file=sys.stderr)
        return 2
    return 0


def keep_run(run: Path) -> dict[str, Any]:
    """Copies the report and its pictures into the repository; the report's facts."""
    facts = json.loads((run / "report.json").read_text(encoding="utf-8"))
    results = ROOT / "results" / facts["name"]
    copies = [(run / name, results / name) for name in ("report.json", "report.md", *facts["figures"].values())]
    for path in facts["figures"].values():
        copies.append((run / path, ROOT / "docs" / "pictures" / f"{facts['name']}_{Path(path).name}"))
    for source, target in copies:
        with atomic_path(target) as temporary:
            shutil.copyfile(source, temporary)
    return facts


def accuracy(facts: dict[str, Any]) -> str:
    """One row per keep rate: measured here, and what the paper prints for its own model and data."""
    table = paper_tables()["table3_keep_rate"]
    theirs = {f"{rate:g}": i for i, rate in enumerate(table["keep_rate"])}
    images = facts["data"]["images"]
    lines = [
        f"**Measured here**: {facts['name']}, {images} held-out images, one set of weights, {facts['device']}, "
        f"{facts['machine']}, batch {facts['batch_size']}; ± is one standard error. **Paper**: DeiT-S on ImageNet-1k, "
        "throughput on an Nvidia Quadro P6000 (Table III), quoted and not reproduced. Other data, model and machine: "
        "the columns are no comparison.",
        "",
        "| keep rate | top-1, % | random lives, % | x images/s | x fewer multiply-adds | paper: top-1, % "
        "| paper: x images/s | paper: x fewer FLOPs |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    dense = facts["rows"][0]
    for row in facts["rows"]:
        name = {"dense": "dense, before slimming", "all kept": "1"}.get(row["name"], row["name"])
        chance = row.get("random")
        random = "" if chance is None else f"{100 * chance['top1']:.1f} ± {100 * chance['stderr']:.1f}"
        ours = f"{100 * row['top1']:.1f} ± {100 * row['top1_stderr']:.1f} | {random} | {row['speed_ratio']:.2f}"
        i = theirs.get("1" if row["name"] == "dense" else row["name"])
        paper = " |  | "
        if i is not None:
            speed, flops = table["throughput"][i] / table["throughput"][0], table["flops"][0] / table["flops"][i]
            paper = f"{table['top1'][i]:.1f} | {speed:.2f} | {flops:.2f}"
        lines.append(f"| {name} | {ours} | {dense['flops'] / row['flops']:.2f} | {paper} |")
    return "\n".join(lines)


def throughput(result: dict[str, Any], file: Path) -> str:
    """One row per model that was timed."""
    machine = result["machine"]
    where = f"{machine['processor']}, {machine['cores']} cores, {'; '.join(machine['devices'])}"
    source = file.resolve().relative_to(ROOT) if file.resolve().is_relative_to(ROOT) else file.name
    lines = [
        f"**Measured here**: images per second on {where}; all models in turns, medians (`{source}`). The quotient "
        "is the speed ratio over the ratio of multiply-adds.",
        "",
        "| model | batch | type | | images/s | x dense | x fewer multiply-adds | quotient |",
        "|---|---:|---|---|---:|---:|---:|---:|",
    ]
    for row in result["throughput"]:
        lines.append(
            f"| {row['model']} | {row['batch']} | {row['dtype']} | {row['name']} | {row['images_per_second']:,.1f} "
            f"| {row['speed_ratio']:.2f} | {row['flops_ratio']:.2f} | {row['quotient']:.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
