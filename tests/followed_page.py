"""A page of the documentation that adds a file to the package, followed literally in a copy of the tree."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent


def follow(tree: Path, page: str, folders: Iterable[str], tests: Mapping[str, str], table: str, last: str) -> None:
    """Copies folders and tests, and puts the page's file, its line in the table, and usage.py there.

    Args:
      tree: an empty folder.
      page: the page's text. Its Python blocks are the file and its usage; one indented line imports the class.
      folders, tests: what to copy; of tests the path in tests/ here and there.
      table, last: the table's name in the `__init__.py` beside the file, and an entry of it.
    """
    for folder in folders:
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name, place in tests.items():
        (tree / "tests" / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "tests" / name, tree / "tests" / place)
    file, usage = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    ((line, module, entry),) = re.findall(r"^    (from (slimvit_jax\.\w+\.\w+) import (\w+))$", page, re.MULTILINE)
    path = f"{module.replace('.', '/')}.py"
    assert f"`{path}`" in page
    (tree / path).write_text(file)
    (tree / "usage.py").write_text(usage)
    listed = (tree / path).with_name("__init__.py")
    text = listed.read_text().replace(f"\n{table}", f"{line}\n\n{table}")
    listed.write_text(text.replace(f"    {last},\n", f"    {last},\n    {entry},\n"))


def run(tree: Path, *command: str) -> str:
    """What the command says, run by Python in the copy; it must succeed."""
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run([sys.executable, *command], cwd=tree, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
