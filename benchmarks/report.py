"""Puts the tables of results/ into pages of docs/ and README.md, and draws their pictures.

    python -m benchmarks.report [--results results] [--docs docs]

A table stands between <!-- table: NAME --> and <!-- /table -->; `benchmarks.tables.TABLES` has the names. Everything
else on these pages is written by a person, and `unfounded` finds numbers in it that no table has.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import plots
from benchmarks.results import Study, read_json
from benchmarks.study_tables import speeds
from benchmarks.tables import TABLES, papers_rows
from slimvit_jax.errors import SlimError, unknown
from slimvit_jax.files import write_text

ROOT = Path(__file__).resolve().parent.parent
#: Pages of docs/ with tables; README.md has one too.
PAGES = ("results", "coverage", "dense", "budget")
PLACE = re.compile(r"<!-- table: (.+?) -->\n(.*?)<!-- /table -->", re.DOTALL)
NUMBER = re.compile(r"\d+(?:,\d{3})*\.\d+")


def main(argv: list[str] | None = None) -> int:
    """Writes pages and pictures; exit status 2 for results that cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description="Fills the pages of results.")
    parser.add_argument("--results", type=Path, default=ROOT / "results", metavar="DIR")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", metavar="DIR")
    args = parser.parse_args(argv)
    try:
        pages = [args.docs / f"{name}.md" for name in PAGES]
        for page in (*pages, args.docs.parent / "README.md"):
            write_text(page, filled(page.read_text(encoding="utf-8"), args.results))
            print(page)
        for picture in draw(args.results, args.docs / "pictures" / "results"):
            print(picture)
    except (SlimError, OSError) as error:
        print(f"report: error: {error}", file=sys.stderr)
        return 2
    return 0


def filled(text: str, results: Path) -> str:
    """A page with every table made anew.

    Raises:
      SlimError: a table that does not exist, or results that cannot be read.
    """

    def place(match: re.Match[str]) -> str:
        if match[1] not in TABLES:
            raise unknown("table", match[1], TABLES)
        return f"<!-- table: {match[1]} -->\n\n{TABLES[match[1]](results)}\n\n<!-- /table -->"

    return PLACE.sub(place, text)


def unfounded(text: str, others: Sequence[str] = ()) -> list[str]:
    """Decimal numbers in a page's sentences that stand in none of its tables.

    Args:
      text: the page.
      others: further text whose numbers count as founded, such as quoted tables of papers.
    """
    known = set(NUMBER.findall(" ".join([*(match[2] for match in PLACE.finditer(text)), *others])))
    said = re.sub(r"`[^`]*`", "", PLACE.sub("", text))
    return [number for number in NUMBER.findall(said) if number not in known]


def draw(results: Path, folder: Path) -> list[Path]:
    """All pictures of what has been measured."""
    drawn: list[Path | None] = []
    if (results / "study_photos" / "study.json").exists():
        untuned = Study(results / "study_photos")
        drawn.append(plots.accuracy(folder / "study_photos_untuned_flops.png", untuned, ("untuned",)))
    for name, groups in (("study_photos", ("main",)), ("study_micro", ("main", "training"))):
        if (results / name / "study.json").exists():
            study = Study(results / name)
            drawn.append(plots.accuracy(folder / f"{name}_accuracy_flops.png", study, groups))
            drawn.append(plots.accuracy(folder / f"{name}_accuracy_speed.png", study, groups, speeds(study)))
            drawn.append(plots.budgets(folder / f"{name}_budgets.png", study))
    if (results / "papers_cpu.json").exists():
        drawn.append(plots.speedups(folder / "papers_cpu_speedups.png", papers_rows(results)))
        suite = read_json(results / "papers_cpu.json")
        drawn += [plots.growth(folder / f"papers_cpu_{key}.png", suite[key], key) for key in ("tokens", "depth")]
    return [path for path in drawn if path is not None]


if __name__ == "__main__":
    sys.exit(main())
