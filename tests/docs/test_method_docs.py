"""docs/methods.md has a section, a picture and the right cost for every method of the table."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import slimvit_jax as slim
from slimvit_jax.methods import METHODS

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "methods.md").read_text()


@pytest.mark.parametrize("method", slim.list_methods())
def test_section_picture_and_cost(method):
    section = re.search(rf"^## {method}\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    assert section, f"docs/methods.md has no section {method}"
    text = section.group(1)
    assert "*Cost*" in text and "*Choose it*" in text
    picture = re.search(r"!\[.+\]\((.+)\)", text)
    assert picture and (DOCS / picture.group(1)).read_bytes().startswith(b"\x89PNG")


def test_the_table_is_what_the_code_says():
    maker = runpy.run_path(str(DOCS / "make_methods_table.py"))
    assert sorted(maker["sections"](PAGE)) == slim.list_methods()
    assert maker["with_table"](PAGE) == PAGE, "run docs/make_methods_table.py"


@pytest.mark.parametrize("method", slim.list_methods())
def test_facts_agree_with_the_class(method):
    cls = METHODS[method]
    assert cls.facts.source and cls.facts.cost
    assert ("merged" in cls.facts.grid) == cls.merges
    if cls.facts.training_free:  # then it needs nothing but the dense model's weights
        model = slim.create_model("vit", method=method, img_size=24, patch_size=4, embed_dim=16, depth=12, num_heads=2)
        shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 24, 24, 3)))
        assert cls.facts.learns == "nothing" and "slim" not in shapes["params"]


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
