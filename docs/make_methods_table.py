"""Writes the table of methods into docs/methods.md, between its two comments.

    python docs/make_methods_table.py

Everything in it is of the code: `Slimming.facts`, class attributes, and `slim.flops` of DeiT-S with default options.
"""

from __future__ import annotations

import re
from pathlib import Path

import slimvit_jax as slim
from slimvit_jax.methods import METHODS

PAGE = Path(__file__).parent / "methods.md"
BEGIN, END = "<!-- table of methods: docs/make_methods_table.py -->", "<!-- end of the table -->"
HEAD = (
    "method",
    "GFLOPs",
    "training-free",
    "needs a class token",
    "shapes",
    "grid",
    "at a location",
    "learns",
    "trained",
    "cost beyond the layers",
    "source",
)


def row(method: str) -> tuple[str, ...]:
    """The cells of a method."""
    slimming = slim.create_model("deit_small_patch16_224", method=method)
    cls, facts = METHODS[method], METHODS[method].facts
    yes = lambda value: "yes" if value else "no"
    return (
        f"[{method}](#{method})",
        f"{slim.flops(slimming).total / 1e9:.2f}",
        yes(facts.training_free),
        yes(cls.needs_class_token),
        facts.shapes,
        facts.grid,
        facts.where,
        facts.learns,
        facts.training + (", or not" if facts.training_free else ""),
        facts.cost.replace("|", "\\|"),
        facts.source,
    )


def table(sections: list[str]) -> str:
    """The table, methods in the order of the page's sections."""
    lines = [HEAD, ("---",) * len(HEAD), *(row(method) for method in sections)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def sections(page: str) -> list[str]:
    """The methods that the page has sections of."""
    return [name for name in re.findall(r"^## (\w+)$", page, re.MULTILINE) if name in METHODS]


def with_table(page: str) -> str:
    """The page with the table as it should be."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n{table(sections(page))}\n\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text("utf-8")), "utf-8")
