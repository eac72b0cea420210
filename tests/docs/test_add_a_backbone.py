"""The page docs/add_a_backbone.md, followed literally in a copy of the tree, and the tests of all backbones there."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "add_a_backbone.md"


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the package with the page's file and its line in the table, and the page's code to use it."""
    tree = tmp_path_factory.mktemp("tree")
    shutil.copytree(ROOT / "slimvit_jax", tree / "slimvit_jax", ignore=shutil.ignore_patterns("__pycache__"))
    (tree / "tests").mkdir()
    for name in ("conftest.py", "backbones/test_backbone_facts.py", "test_architecture.py"):
        shutil.copy(ROOT / "tests" / name, tree / "tests")
    page = PAGE.read_text()
    file, usage = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    (name,) = re.findall(r"the file\s+`(slimvit_jax/backbones/\w+\.py)`", page)
    (tree / name).write_text(file)
    (tree / "usage.py").write_text(usage)
    ((line, entry),) = re.findall(r"^    (from slimvit_jax\.backbones\.\w+ import (\w+))$", page, re.MULTILINE)
    table = tree / "slimvit_jax" / "backbones" / "__init__.py"
    text = table.read_text().replace("\nBACKBONES", f"{line}\n\nBACKBONES")
    table.write_text(text.replace("    EvoLeViT,\n", f"    EvoLeViT,\n    {entry},\n"))
    return tree


def run(tree, *command):
    done = subprocess.run([sys.executable, *command], cwd=tree, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_its_usage_runs_as_printed(tree):
    run(tree, "usage.py")


def test_the_tests_of_all_backbones_pass(tree):
    said = run(tree, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir=.", "tests", "-k", "early or one_way")
    assert re.search(r"\d+ passed", said) and "skipped" not in said
