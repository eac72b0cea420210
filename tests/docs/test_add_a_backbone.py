"""The page docs/add_a_backbone.md, followed literally in a copy of the tree, and the tests of all backbones there."""

import re

import pytest
from followed_page import ROOT, follow, run


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the package with the page's file and its line in the table, and the page's code to use it."""
    tree, page = tmp_path_factory.mktemp("tree"), (ROOT / "docs" / "add_a_backbone.md").read_text()
    tests = {"backbones/test_backbone_facts.py": "test_backbone_facts.py"}
    tests |= {name: name for name in ("conftest.py", "test_architecture.py")}
    follow(tree, page, ["slimvit_jax"], tests, "BACKBONES", "EvoLeViT")
    return tree


def test_its_usage_runs_as_printed(tree):
    run(tree, "usage.py")


def test_the_tests_of_all_backbones_pass(tree):
    said = run(tree, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir=.", "tests", "-k", "early or one_way")
    assert re.search(r"\d+ passed", said) and "skipped" not in said
