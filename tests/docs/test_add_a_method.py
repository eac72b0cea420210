"""The page docs/add_a_method.md followed literally in a copy of the tree, and the tests that find new methods there."""

import re

import pytest
from followed_page import ROOT, follow, run

PAGE = ROOT / "docs" / "add_a_method.md"
#: What goes through the table of methods; more than these would, but each kind of thing they ask for is here.
ASKED = ("test_matrix.py", "methods/test_method_facts.py", "docs/test_method_docs.py")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy with the page's file, its line in the table, its section in the documentation, and its code to use it."""
    tree, page = tmp_path_factory.mktemp("tree"), PAGE.read_text()
    tests = {name: name for name in ("conftest.py", "golden.py", "test_architecture.py", *ASKED)}
    follow(tree, page, ["slimvit_jax", "docs"], tests, "METHODS", "TopK")
    (section,) = re.findall(r"^```markdown\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    methods, behind = tree / "docs" / "methods.md", "# What methods share"
    methods.write_text(methods.read_text().replace(behind, f"{section}\n{behind}"))
    return tree


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
