"""The page docs/add_a_method.md followed literally in a copy of the tree, and the tests that find new methods there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "add_a_method.md"
#: What goes through the table of methods; more than these would, but each kind of thing they ask for is here.
ASKED = ("test_matrix.py", "methods/test_method_facts.py", "docs/test_method_docs.py")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy with the page's file, its line in the table, its section in the documentation, and its code to use it."""
    tree = tmp_path_factory.mktemp("tree")
    for folder in ("slimvit_jax", "docs"):
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("conftest.py", "golden.py", "test_architecture.py", *ASKED):
        (tree / "tests" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "tests" / name, tree / "tests" / name)
    page = PAGE.read_text()
    file, usage = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    (section,) = re.findall(r"^```markdown\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    (name,) = re.findall(r"a file, `(slimvit_jax/methods/\w+\.py)`", page)
    (tree / name).write_text(file)
    (tree / "usage.py").write_text(usage)
    ((line, entry),) = re.findall(r"^    (from slimvit_jax\.methods\.\w+ import (\w+))$", page, re.MULTILINE)
    table = tree / "slimvit_jax" / "methods" / "__init__.py"
    table.write_text(
        table.read_text().replace("\nMETHODS", f"{line}\n\nMETHODS").replace("  TopK,\n", f"  TopK,\n{entry},")
    )
    methods = tree / "docs" / "methods.md"
    methods.write_text(
        methods.read_text().replace("## All patches in the end", f"{section}\n## All patches in the end")
    )
    return tree


def run(tree, *command):
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run([sys.executable, *command], cwd=tree, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_its_usage_runs_as_printed(tree):
    run(tree, "usage.py")


def test_the_tests_of_all_methods_pass(tree):
    """After the two commands that the page gives; the picture from a training of two steps."""
    commands = re.findall(r"^    python (docs/\S+)(.*)$", PAGE.read_text(), re.MULTILINE)
    assert len(commands) == 2
    for script, words in commands:
        run(tree, script, *words.split(), *(["--steps=2"] if "pictures" in script else []))
    chosen = "gate or the_table_is or one_way or no_method_by_name"
    said = run(tree, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir=.", "tests", "-k", chosen)
    assert re.search(r"\d+ passed", said) and "skipped" not in said
