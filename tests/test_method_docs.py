"""docs/methods.md has a section, a picture and the right cost for every method of the table."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import slimvit_jax as slim

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "methods.md").read_text()


@pytest.mark.parametrize("method", slim.list_methods())
def test_section_picture_and_cost(method):
    section = re.search(rf"^## {method}\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    assert section, f"docs/methods.md has no section {method}"
    text = section.group(1)
    assert "*Cost*" in text and "*Choose it*" in text
    picture = re.search(r"!\[.+\]\((.+)\)", text)
    assert picture and (DOCS / picture.group(1)).read_bytes().startswith(b"\x89PNG")
    model = slim.create_model("deit_small_patch16_224", method=method)
    assert f"| [{method}](#{method}) | {slim.flops(model).total / 1e9:.2f} |" in PAGE
    row = re.search(rf"^\| \[{method}\].*$", PAGE, re.MULTILINE).group(0)
    assert ("| yes | " in row) == model.slim.needs_class_token
    assert row.endswith("| merges |") == model.slim.merges


@pytest.mark.parametrize(
    ("row", "names", "unit", "digits"),
    [
        ("LV-ViT, GFLOPs", ["lvvit_t", None, "lvvit_s", "lvvit_m", "lvvit_l"], 1e9, 2),
        ("SiT on it, GFLOPs", [f"sit_{size}" for size in ("t", "xs", "s", "m", "l")], 1e9, 2),
        ("LeViT, MFLOPs", [f"levit_{size}" for size in ("128s", "128", "192", "256", "384")], 1e6, 0),
        ("Evo-LeViT, MFLOPs", [f"evo_levit_{size}" for size in ("128s", "128", "192", "256", "384")], 1e6, 0),
    ],
)
def test_costs_of_the_backbones(row, names, unit, digits):
    cost = lambda name: f"{slim.flops(slim.create_model(name)).total / unit:.{digits}f}" if name else ""
    line = next(line for line in PAGE.splitlines() if line.startswith(f"| {row} |"))
    assert [cell.strip() for cell in line.strip("|").split("|")][1:] == [cost(name) for name in names]
