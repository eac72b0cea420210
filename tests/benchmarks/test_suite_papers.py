"""The papers' suite of benchmarks/throughput.py: what it plans, and what a run of tiny models leaves behind."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from tqdm import tqdm

import slimvit_jax as slim
from benchmarks import suite_papers
from benchmarks.paper_rows import paper_rows

ROOT = Path(__file__).parents[2]
TINY = {"img_size": 8, "patch_size": 2, "in_chans": 1, "embed_dim": 12, "depth": 3, "num_heads": 2, "num_classes": 4}


@pytest.fixture
def suite():
    return suite_papers


def test_benchmarks_start_in_a_tree_with_runs(tmp_path):
    """A folder of runs, which README's first command makes, has the name of one of the modules."""
    (tmp_path / "runs").mkdir()
    for module, words in (("throughput", ["--models=nothing"]), ("throughput", ["--suite=papers", "--groups=none"])):
        command = [sys.executable, "-m", f"benchmarks.{module}", *words]
        done = subprocess.run(
            command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
        )
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr


def test_benchmarks_import_their_modules_from_the_package():
    names = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    for path in (ROOT / "benchmarks").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert not names & {alias.name.split(".")[0] for alias in node.names}, path
            elif isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] not in names and node.level == 0, path


@pytest.fixture
def parse(suite):
    from benchmarks import throughput

    return lambda *argv: throughput.parse(["--suite=papers", *argv])


def test_every_row_is_measured_once(suite):
    planned = suite.architectures()
    assert sorted((r.table, r.label) for rows in planned for r in rows) == sorted(
        (r.table, r.label) for r in paper_rows()
    )
    small = next(rows for rows in planned if rows[0].model == "deit_small_patch16_224")
    assert {row.model for row in small} == {"deit_small_patch16_224", "vit_small_patch16_224"}  # one architecture
    group = suite.row_group(small, 16, "float32", timm=True)
    assert next(iter(group.entries)) == "dense" and group.timm == "deit_small_patch16_224"
    said = {name: facts["rows"] for name, (_, facts) in group.entries.items()}
    assert said["dense"] == [["table1_deit", "DeiT-S"], ["table2_vit", "ViT-S"], ["table3_keep_rate", "keep rate 1"]]
    assert ["table3_keep_rate", "keep rate 0.7"] in said["Life regression (DeiT-S)"]
    assert sum(map(len, said.values())) == len(small)
    lvvit = next(rows for rows in planned if rows[0].model == "sit_xs")
    assert suite.row_group(lvvit, 16, "float32", timm=True).timm == ""  # timm has no LV-ViT


def test_heavy_models_come_last_and_groups_can_be_chosen(suite, parse):
    titles = [title for title, _ in suite.plan(parse(), "cpu")]
    assert [t for t in titles if "base" in t or "lvvit_m" in t or "lvvit_l" in t] == titles[-3:]
    assert sum(t.startswith("tokens") for t in titles) == 3 and sum(t.startswith("training") for t in titles) == 1
    chosen = [title for title, _ in suite.plan(parse("--groups", "training,depth 24"), "cpu")]
    assert chosen == ["training float32", "depth 24 float32"]
    assert len(suite.plan(parse("--dtypes", "float32,bfloat16"), "cpu")) == 2 * len(titles)
    on_gpu = [title for title, _ in suite.plan(parse(), "gpu")]
    assert "deit_small_patch16_224 float32 128" in on_gpu and "lvvit_l float32 fastest batch" in on_gpu


def test_a_run_leaves_its_json(suite, parse, tmp_path, capsys):
    args = parse("--rounds", "2", "--min-seconds", "0", "--json", str(tmp_path / "out.json"))
    dense = slim.create_model("vit", **TINY)
    life = slim.create_model("vit", "life_regression", locations=(1, 2), keep_rate=0.5, **TINY)
    facts = {"batch": 2, "dtype": "float32"}
    first = suite.Group("tokens", "first", facts, suite.forwards({"dense": dense, "life": life}, 2))
    step = {"stage 1": (lambda: suite.training_step(life, "method", 2), {"method": "life_regression"})}
    with tqdm(disable=True) as bar:
        groups = [("first", lambda: first), ("steps", lambda: suite.Group("training", "steps", facts, step))]
        assert suite.run(args, None, bar, groups) == 0
    assert "steps" in capsys.readouterr().out
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["groups"] == {"measured": 2, "planned": 2} and result["notes"] == []
    ours, slimmed = result["tokens"]
    assert (ours["name"], ours["speed_ratio"], ours["flops"]) == ("dense", 1.0, slim.flops(dense).total)
    assert slimmed["speed_ratio"] == pytest.approx(ours["seconds"] / slimmed["seconds"])
    assert len(slimmed["wall"]) == 2 and slimmed["compile_seconds"] > 0
    assert slimmed["images_per_second"] == pytest.approx(2 / slimmed["seconds"])
    assert ours["memory"]["per_image"] * 2 == ours["memory"]["working"] > 0
    weights = sum(leaf.size * 4 for leaf in jax.tree.leaves(suite_variables(dense)))
    assert ours["memory"]["arguments"] >= weights  # and the images
    assert [row["name"] for row in result["training"]] == ["stage 1"]


def test_training_steps_of_the_group_and_those_with_a_teacher(suite):
    group = suite.training_group("deit_tiny_patch16_224", 2, "float32")
    assert list(group.entries) == [
        "dense",
        "life regression, stage 1: predictor",
        "life regression, stage 2: backbone",
        "DynamicViT with its teacher",
        "SiT with its teacher and recovery (FRD)",
    ]
    dense = slim.create_model("vit", **TINY)
    for method in ("dynamicvit", "sit"):
        model = slim.create_model("vit", method, locations=(1, 2), keep_rate=0.5, **TINY)
        program = suite.training_step(model, "all", 2, dense)
        program.call()
        program.call()  # goes on from the donated state
        assert program.memory["per_image"] > 0


def suite_variables(model):
    from benchmarks import runs

    return runs.variables_for(model)


def test_what_cannot_run_is_noted(suite, parse, tmp_path):
    def fails():
        raise RuntimeError("RESOURCE_EXHAUSTED: out of memory\nand a long trace")

    args = parse("--rounds", "1", "--min-seconds", "0")
    dense = suite.forwards({"dense": slim.create_model("vit", **TINY)}, 1)
    notes: list[str] = []
    facts = {"batch": 1, "dtype": "float32"}
    rows = suite.run_group(
        suite.Group("tokens", "big", facts, {**dense, "huge": (fails, {})}), args, None, lambda _: None, notes
    )
    assert [row["name"] for row in rows] == ["dense"]
    assert notes == ["big, huge: RESOURCE_EXHAUSTED: out of memory"]


def test_a_group_that_is_not_there(suite, parse, capsys):
    with tqdm(disable=True) as bar:
        assert suite.run(parse("--groups", "nonsense"), None, bar) == 2
    assert "names no group" in capsys.readouterr().err
