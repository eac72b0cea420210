"""The page of results: from made results (test data, no measurement) and from the committed ones."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import jax
import pytest

import slimvit_jax as slim
from benchmarks import report, study_speed
from benchmarks.page import cells, verdicts
from benchmarks.page.cells import Stat, Study, difference
from slimvit_jax import training
from slimvit_jax.training import recipes

ROOT = Path(__file__).parents[1]
RATES = (0.9, 0.7, 0.5)


def make_row(group: str, variant: str, method: str, rate: float, seed: int, accuracy: float, **more) -> dict:
    """One line of results.jsonl; life regression answers for all rates, its random lives one point below."""
    pairs = [(rate, None, accuracy)]
    if method == "life_regression":
        pairs = [(r, lives, accuracy - gap) for r in RATES for lives, gap in (("learned", 0.0), ("random", 0.01))]
    evals = [
        {"keep_rate": r, "lives": lives, "accuracy": a, "top5": 0.99, "loss": 0.3, "examples": 360}
        | {"flops": int(1000 * r), "target_flops": int(1000 * r)}
        for r, lives, a in pairs
    ]
    cell = f"{group}/{variant}/{rate:g}/seed{seed}"
    return {
        "cell": cell, "group": group, "variant": variant, "method": method,
        "options": {"keep_rate": rate, "locations": [1, 2]},
        "train_rate": rate, "seed": seed, "epochs": 2.0, "seconds": 1.0, "evals": evals, **more,
    }  # fmt: skip


def make_study(folder: Path, rows: list[dict]) -> Path:
    """A study's folder with these rows; its config is a real one for the embedded digits."""
    config = recipes.tiny(recipes.study_on_fashion_mnist(patch_size=4, embed_dim=16, num_heads=2))
    config.method.options = {"keep_rate": 0.7, "locations": (1, 2)}
    dense = {"accuracy": 0.9, "top5": 0.99, "loss": 0.3, "examples": 360, "flops": 1200, "parameters": 99}
    facts = {
        "command": "made by a test", "date": "2026-01-01", "machine": {}, "scale": "made",
        "config": training.config.flatten(config.to_dict()), "dense": {**dense, "epochs": 3.0, "seconds": 1.0},
    }  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "study.json").write_text(json.dumps(facts))
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def whole_study() -> list[dict]:
    """Every group, two seeds: life regression 0.2 points below dense, random patches 1 more, EViT a bit above."""
    rows = []
    for seed, wobble in ((0, 0.001), (1, -0.001)):
        life = 0.898 + wobble
        rows.append(make_row("main", "dense", "dense", 1.0, seed, 0.91))
        for rate in RATES:
            rows.append(make_row("main", "life_regression", "life_regression", rate, seed, life))
            rows.append(make_row("main", "random", "random", rate, seed, life - 0.01))
            rows.append(make_row("main", "evit", "evit", rate, seed, life + 0.002))
            rows.append(make_row("stages", "two stages", "life_regression", rate, seed, life))
        rows.append(make_row("stages", "single stage", "life_regression", 0.7, seed, life + 0.01))
        for u in (0.5, 1.5, 3):
            rows.append(make_row("temperature", f"U={u:g}", "life_regression", 0.7, seed, life + u / 1000))
        rows.append(make_row("untuned", "tome", "tome", 0.7, seed, 0.899))
        rows.append(make_row("untuned", "topk", "topk", 0.7, seed, 0.65))
        for group, default in verdicts.DEFAULTS.items():
            rows.append(make_row(group, default, "life_regression", 0.7, seed, life))
            rows.append(make_row(group, cells.RECOMMENDED, "life_regression", 0.7, seed, life + 0.004))
        rows.append(make_row("training", cells.RECOMMENDED, "life_regression", 0.5, seed, life + 0.003))
        for rate in (0.7, 0.5):
            rows.append(make_row("training", cells.WITH_LOGITS, "life_regression", rate, seed, life + 0.0035))
        rows.append(make_row("training", cells.ANY_BUDGET, "life_regression", 0.5, seed, life + 0.001))
        for rate in (0.7, 0.5):
            rows.append(make_row("distilled", "random", "random", rate, seed, life - 0.008))
        rows.append(make_row("long", "evit", "evit", 0.7, seed, life + 0.02, epochs=30.0))
    return rows


def make_page(tmp_path: Path) -> str:
    out = tmp_path / "docs" / "results.md"
    assert report.main(["--results", str(tmp_path / "results"), "--out", str(out)]) == 0
    text = out.read_text()
    for link in re.findall(r"!\[.*?\]\((.*?)\)", text):
        assert (out.parent / link).read_bytes().startswith(b"\x89PNG"), link
    for link in re.findall(r"(?<!!)\[[^\]]*\]\(([^)]*)\)", text):
        assert (out.parent / link).exists(), link
    return text


def section(text: str, title: str) -> str:
    return re.split(r"^#{2,4} ", text.split(title, 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


def test_a_whole_study(tmp_path):
    folder = make_study(tmp_path / "results" / "study_made", whole_study())
    speed = {"command": "made", "machine": {"processor": "p", "cores": 1, "devices": ["d"]}, "batch": 8}
    rows = [{"method": m, "keep_rate": r, "speed_ratio": 2 - r} for m in ("life_regression", "evit") for r in RATES]
    (folder / "speed.json").write_text(json.dumps({**speed, "rows": rows}))
    text = make_page(tmp_path)
    goals = section(text, "What was to be reached")
    assert "after two epochs: with the paper's losses **yes**, -0.20 ± 0.14 points (2 seeds)" in goals
    assert f"with {cells.RECOMMENDED} **yes**, +0.20 ± 0.14 points (2 seeds)" in goals
    # under the same weights (all recipes), and tuned with random patches
    assert goals.count("**yes**, +1.00 ± 0.00 points") == 4
    assert "against a model tuned with random patches **yes**, +1.30 ± 0.00 points" in goals
    assert "with random patches and the same logits **yes**, +1.15 ± 0.00 points" in goals
    assert "**yes** for the 1 measured, the best of them, EViT, is at +0.20 ± 0.00 points; with hard" in goals
    methods = section(text, "Methods at matched")
    assert methods.index("| EViT |") < methods.index("| **life regression** |") < methods.index("| random patches |")
    assert f"| life regression, {cells.RECOMMENDED} | — | 90.20 ± 0.14 | 90.10 ± 0.14 | 1.000 |" in methods
    untuned = section(text, "Without any tuning")
    assert untuned.index("| ToMe | 89.90 ± 0.00 | — |") < untuned.index("| top-k | 65.00 ± 0.00 | — |")
    assert "ToMe changes the accuracy by -0.10 ± 0.00 points at 0.7, top-k by -25.00 ± 0.00. On these" in text
    logits = section(text, "With the dense model's logits")
    assert "| random patches | 88.80 ± 0.14 | 89.00 ± 0.14 | +0.20 ± 0.00 | 88.80 ± 0.14" in logits
    assert "89.80 ± 0.14" in methods and "the dense model reaches 91.00 ± 0.00 %" in methods
    assert "-0.6 (DeiT-S, 1.53x fewer); -2.1 (ViT-B, 1.45x fewer)" in methods  # EViT's row of the paper
    stages = section(text, "One stage or two")
    assert "| 0.7 | 90.80 ± 0.14 | 89.80 ± 0.14 | -1.00 ± 0.00 | 78.3 | 79.3 | +1.0 |" in stages
    assert "the other way round beyond the spread at 0.7" in text
    assert "Ours is U = 3, +0.15 ± 0.00 above U = 1.5" in text
    assert "| EViT | 30 | 91.80 ± 0.14 | +1.80 ± 0.00 | +2.00 ± 0.00 |" in section(text, "Longer runs")
    assert {path.stem for path in (tmp_path / "docs/pictures/results").glob("*.png")} >= {
        f"study_made_{kind}" for kind in ("accuracy_flops", "accuracy_speed", "margins", "temperature", "budgets")
    }
    assert "Not measured yet: `python -m benchmarks.throughput --suite=papers" in text
    assert "has not saved `life.safetensors` yet" in text


def test_one_seed_has_no_spread_and_decides_nothing(tmp_path):
    rows = [row for row in whole_study() if row["seed"] == 0 and row["train_rate"] >= 0.7 and row["group"] == "main"]
    rows.append(make_row("main", "evit", "evit", 0.5, 0, 0.0) | {"evals": [], "error": "loss is nan"})
    make_study(tmp_path / "results" / "study_made", rows)
    text = make_page(tmp_path)
    assert "n = 1;" in section(text, "Methods at matched") and "±" not in section(text, "Methods at matched")
    assert "Without a result: `main/evit/0.5/seed0`: loss is nan." in text
    assert "At 0.5 learned lives are above random ones by more than the seeds' spread: not measured yet" in text
    assert "number 2 of 2; none is clearly above it; none is clearly below" in text
    for title in ("One stage or two", "Temperature (Table V)", "Learning rates of predictor"):
        assert "Not measured yet." in section(text, title)


def test_nothing_measured(tmp_path):
    (tmp_path / "results").mkdir()
    text = make_page(tmp_path)
    assert "`python -m benchmarks.study --config=configs/study_fashion.py" in text
    assert "| Life regression (DeiT-S) | 3.2 | 3.206 | +0.2 % | yes | 3.148 |" in text
    make_study(tmp_path / "results" / "study_made", [])
    assert "No run is finished yet" in make_page(tmp_path)


def test_broken_results_are_one_line(tmp_path, capsys):
    folder = make_study(tmp_path / "results" / "study_made", [{"cell": "x"}])
    out = ["--results", str(tmp_path / "results"), "--out", str(tmp_path / "out.md")]
    assert report.main(out) == 2
    assert "lacks evals, group" in capsys.readouterr().err
    (folder / "results.jsonl").write_text("not json")
    assert report.main(out) == 2 and not (tmp_path / "out.md").exists()
    assert capsys.readouterr().err.count("\n") == 1


def test_lives_are_drawn_from_the_saved_weights(tmp_path):
    folder = make_study(tmp_path / "results" / "study_made", whole_study()[:8])
    options = Study(folder).model_options()
    model = slim.create_model("vit", "life_regression", keep_rate=0.7, locations=(1, 2), **options)
    images = jax.numpy.zeros((1, *model.img_size, model.in_chans))
    slim.save(model, model.init(jax.random.key(0), images), folder / "life.safetensors")
    text = make_page(tmp_path)
    assert "study_made_lives.png" in text and "study_made_weights.png" in text


def suite_entry(name: str, rows: list[list[str]], speed: float, flops: int) -> dict:
    shared = {"model": "deit_small_patch16_224", "batch": 16, "dtype": "float32", "compile_seconds": 2.0}
    memory = {"arguments": 90e6, "working": 32e6, "per_image": 2e6}
    return {**shared, "name": name, "rows": rows, "flops": flops, "memory": memory, "seconds": 1 / speed} | {
        "images_per_second": 16 * speed,
        "speed_ratio": speed,
    }


def test_the_suite(tmp_path):
    dense = suite_entry("dense", [["table1_deit", "DeiT-S"]], 1.0, 4_600)
    life = suite_entry("life", [["table1_deit", "Life regression (DeiT-S)"]], 1.3, 3_150)
    grown = [
        {"name": name, "tokens": n, "depth": d, "side": 224, "patch": 16, "batch": 4, "dtype": "float32"}
        | {"images_per_second": 5.0 * f, "speed_ratio": f, "flops": 100 / f, "memory": None}
        for n, d in ((196, 12), (576, 24))
        for name, f in (("dense", 1.0), ("life_regression 0.7", 1.4))
    ]
    result = {
        "suite": "papers", "command": "made", "groups": {"measured": 3, "planned": 9}, "notes": ["huge: no memory"],
        "throughput": [dense, life], "training": [dense | {"name": "dense"}], "tokens": grown, "depth": grown,
    }  # fmt: skip
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "papers_cpu.json").write_text(json.dumps(result))
    (folder / "loading.json").write_text(json.dumps({"rates": {"ours": [1.0, 3.0, 2.0]}, "settings": {}}))
    run = {"resumed": False, "seconds": 7.0}
    loop = {"model": "tiny", "outside_share": 0.016, "start": [run], "checkpoint": {"added_seconds": 0.25}}
    kept = {"model": "large", "stage": "dense", "activations": 3 * 2**20, "activations_remat": 2**20}
    (folder / "loop.json").write_text(json.dumps({"results": [loop], "memory": [kept], "unknown": 1}))
    text = make_page(tmp_path)
    for said in ("1.6 % of a step's time", "7.0 s to the first step", "adds 0.25 s", "3 MiB an image, 1 recomputed"):
        assert said in text
    assert "**3 of 9 groups**: the run was cut short" in text and "Note: huge: no memory." in text
    assert "| Life regression (DeiT-S) | 20.8 | 1.30 | 1.40 | 1.46 | — | 704.8 |" in text
    assert "Below the paper's speed-up: Life regression (DeiT-S) (1.30, paper 1.40)." in text
    assert "0.89 to 0.89" in text and "33 rows are not measured yet" in text
    assert "| 576 (224 px, patch 16) | life_regression 0.7 | 7.0 | 1.40 | 1.40 |" in text
    assert "| deit_small_patch16_224 | life | 2.0 | 2.0 | 1.00 | 90 |" in text
    assert "[`loading.json`]" in text and "ours 2 images/s" in text


def test_the_readme_gets_the_study_in_short(tmp_path):
    folder = make_study(tmp_path / "results" / "study_micro", whole_study())
    readme = tmp_path / "README.md"
    readme.write_text("no place for it\n")
    make_page(tmp_path)
    assert readme.read_text() == "no place for it\n"
    readme.write_text("before\n<!-- study -->\nold\n<!-- /study -->\nafter\n")
    make_page(tmp_path)
    text = readme.read_text()
    assert text.startswith("before\n<!-- study -->\n**Measured here**: digits, 360 test images")
    assert text.endswith("|\n<!-- /study -->\nafter\n") and "old" not in text and "Speed against" not in text
    best, second, third, last = text.split("---: |\n")[1].splitlines()[:4]
    assert best == f"| **life regression, {cells.RECOMMENDED}** | 90.2 |  | 90.1 |  |"
    assert (
        second == "| EViT | 90.0 |  | 90.0 |  |"
        and third == "| **life regression, the paper's training** | 89.8 |  | 89.8 |  |"
    )
    assert last == "| random patches | 88.8 |  | 88.8 |  |"
    speed = {"command": "made", "machine": {"processor": "p", "cores": 1, "devices": ["d"]}, "batch": 8}
    rows = [{"method": "life_regression", "keep_rate": r, "speed_ratio": 2 - r} for r in RATES]
    (folder / "speed.json").write_text(json.dumps({**speed, "rows": rows}))
    make_page(tmp_path)
    text = readme.read_text()
    assert f"| **life regression, {cells.RECOMMENDED}** | 90.2 | 1.30 | 90.1 | 1.50 |" in text
    assert "Speed against the dense model on p, 1 cores, d." in text
    assert (tmp_path / re.findall(r"!\[.*?\]\((.*?)\)", text)[0]).exists()
    readme.write_text("<!-- study -->\nno end\n")
    assert report.main(["--results", str(tmp_path / "results"), "--out", str(tmp_path / "docs" / "results.md")]) == 2


def test_the_committed_page_and_readme_are_of_the_committed_results(tmp_path):
    shutil.copytree(ROOT / "results", tmp_path / "results", ignore=shutil.ignore_patterns("runs"))
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / "docs" / "scaling.md", tmp_path / "docs")  # the page links to it
    shutil.copy(ROOT / "README.md", tmp_path)
    made, committed = make_page(tmp_path), (ROOT / "docs" / "results.md").read_text()
    lives = "### Lives of sample images"  # needs the images, which not every machine has
    for part in range(2):
        assert _without(made, lives)[part] == _without(committed, lives)[part]
    assert (tmp_path / "README.md").read_text() == (ROOT / "README.md").read_text()


def _without(text: str, title: str) -> tuple[str, str]:
    """What stands before a section, and after it."""
    before, _, rest = text.partition(title)
    return before, rest[len(section(text, title)) :]


def test_rules_on_numbers():
    """The spread of 1, 2, 3 is 1; pairs are by seed; one seed is never clear."""
    assert Stat((0.01, 0.02, 0.03)).text() == "2.00 ± 1.00" and Stat((0.5,)).text() == "50.00"
    assert Stat((0.5,), examples=100).sampling == pytest.approx(0.05)
    first = {0: Stat((0.5,)), 1: Stat((0.7,)), 2: Stat((0.9,))}
    second = {1: Stat((0.6,)), 2: Stat((0.82,))}
    gap = difference(first, second)
    assert gap is not None and (round(gap.mean, 9), gap.n, gap.clear) == (0.09, 2, True)
    lone = difference({0: Stat((0.9,))}, {0: Stat((0.1,))})
    assert lone is not None and lone.spread is None and not lone.clear
    apart = difference({0: Stat((0.4,)), 1: Stat((0.6,))}, {2: Stat((0.1,)), 3: Stat((0.1,))})
    assert apart is not None and apart.n == 0 and apart.spread == pytest.approx(0.02**0.5)
    assert difference({}, second) is None
    assert cells.table(["a", "b"], [["x", "1"]]) == "| a | b |\n| --- | ---: |\n| x | 1 |"


def test_speed_of_the_studys_models(tmp_path, capsys):
    folder = make_study(tmp_path / "study_made", whole_study()[1:2])
    assert study_speed.main([str(folder), "--batch", "2", "--rounds", "2"]) == 0
    result = json.loads((folder / "speed.json").read_text())
    assert [(row["method"], row["keep_rate"]) for row in result["rows"]] == [("dense", 0.9), ("life_regression", 0.9)]
    assert result["rows"][0]["speed_ratio"] == 1 and len(result["rows"][1]["wall"]) == 2
    assert study_speed.main([str(make_study(tmp_path / "study_empty", []))]) == 2
    assert "no finished run" in capsys.readouterr().err
