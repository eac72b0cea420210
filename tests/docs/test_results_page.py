"""The pages of results: their tables are those of results/, and no sentence has a number that nothing made."""

import json
from pathlib import Path

import numpy as np
import pytest
from train_tools import shipped, tiny

import slimvit_jax as slim
from benchmarks import budget, report, study_speed, study_tables
from benchmarks.results import Stat, Study, difference, paired, table
from slimvit_jax import training

ROOT = Path(__file__).parents[2]
PAGES = [*(ROOT / "docs" / f"{name}.md" for name in report.PAGES), ROOT / "README.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_committed_pages_are_of_the_committed_results(page):
    text = page.read_text()
    assert report.filled(text, ROOT / "results") == text
    others = [(ROOT / "slimvit_jax/reports/paper_tables.json").read_text()]
    if page.name == "README.md":
        others += [PAGES[0].read_text(), "3.11", "2.0"]  # Python and a licence
    assert report.unfounded(text, others) == []


def test_a_number_that_no_table_has_is_found():
    page = "Ours has 85.24 %, theirs `9.99` 85.31 %.\n<!-- table: x -->\n\n| a | 85.24 |\n\n<!-- /table -->\n"
    assert report.unfounded(page) == ["85.31"]
    assert report.unfounded(page, ["85.31"]) == []
    with pytest.raises(slim.SlimError, match="unknown table 'x'"):
        report.filled(page, ROOT / "results")


def make_study(folder: Path, rows: list[dict]) -> Path:
    """A study's folder with these rows; its config is a real one for the embedded digits."""
    config = tiny(shipped("study_fashion"))
    dense = {"accuracy": 0.75, "top5": 0.99, "loss": 0.3, "examples": 4, "flops": 1200, "parameters": 99}
    facts = {"config": training.config.flatten(config.to_dict()), "dense": dense, "scale": "made"}
    folder.mkdir(parents=True)
    (folder / "study.json").write_text(json.dumps(facts))
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def make_row(group: str, variant: str, method: str, rate: float, seed: int, right: list[int]) -> dict:
    outcome = {"keep_rate": rate, "lives": None, "accuracy": float(np.mean(right)), "examples": len(right)}
    outcome |= {"flops": int(1200 * rate), "hits": np.packbits(right).tobytes().hex(), "top5": 1.0}
    options = {} if method == "dense" else {"keep_rate": rate, "locations": [1, 2]}
    row = {"cell": f"{group}/{variant}/{rate:g}/seed{seed}", "group": group, "variant": variant, "method": method}
    return {**row, "options": options, "train_rate": rate, "seed": seed, "evals": [outcome]}


def test_methods_are_compared_image_by_image(tmp_path):
    """Right on 3 of 4 before; random 2 of 4 with seed 0 and 3 of 4 with seed 1, top-k all."""
    rows = [
        make_row("untuned", "dense", "dense", 1.0, 0, [1, 1, 1, 0]),
        make_row("main", "random", "random", 0.5, 0, [1, 1, 0, 0]),
        make_row("main", "random", "random", 0.5, 1, [1, 1, 0, 1]),
        make_row("main", "topk", "topk", 0.5, 0, [1, 1, 1, 1]),
    ]
    folder = make_study(tmp_path / "study_made", rows)
    (folder / "speed.json").write_text('{"rows": [{"variant": "topk", "keep_rate": 0.5, "speed_ratio": 1.5}]}')
    lines = study_tables.methods(Study(folder), rates=(0.5,)).splitlines()[2:]
    assert lines[0] == "| dense, before | 75.00 | — | 1.00 | 1.00 | — |"
    assert lines[1] == "| top-k | 100.00 | +25.00 ± 25.00 | 2.00 | 1.50 | 1 |"
    assert lines[2] == "| random patches | 62.50 ± 17.68 | -12.50 ± 31.46 | 2.00 | — | 2 |"
    assert report.main(["--results", str(tmp_path), "--docs", str(tmp_path)]) == 2  # no page there


def test_a_run_whose_rates_are_drawn_counts_at_each_of_them(tmp_path):
    """Any other run that is evaluated at more rates counts at the one it was trained at."""
    rows = []
    for variant in ("one for all budgets", "life_regression"):
        rows.append(make_row("main", variant, "life_regression", 0.5, 0, [1, 0, 0, 0]))
        rows[-1]["evals"] += make_row("main", variant, "life_regression", 0.7, 0, [1, 1, 0, 0])["evals"]
    folder = make_study(tmp_path / "study_made", rows)
    (folder / "speed.json").write_text(
        '{"rows": [{"variant": "life_regression, squeezed", "keep_rate": 0.7, "speed_ratio": 1.25}]}'
    )
    study = Study(folder)
    drawn, fixed = (f"**life regression{more}**" for more in (", squeezed, rates drawn", ""))
    lines = study_tables.methods(study, rates=(0.7, 0.5)).splitlines()[-2:]
    assert lines[0] == f"| {drawn} | 50.00 | -25.00 | 1.43 | 1.25 | 1 | 25.00 | -50.00 | 2.00 | — | 1 |"
    assert lines[1] == f"| {fixed} | — | — | — | — | — | 25.00 | -50.00 | 2.00 | — | 1 |"
    assert study.hits("main", "one for all budgets", 0.7) is not None
    assert study.hits("main", "life_regression", 0.7) is None


def test_a_set_takes_what_disagrees_least_on_it():
    """What was found is better on set 0 and worse on set 1, which keeps the schedule that its search began at."""

    def held(shape: str, lost: int) -> dict:
        facts = {"shape": shape, "accuracy": None, "counts": [4, 2], "lost": [lost, lost]}
        return {"what": f"held/tome/{shape}", "family": "tome", **facts}

    searched = lambda seed, disagreement, gain: {
        **{"what": f"search/{seed}/tome", "start": "three drops"},
        **{"disagreement": disagreement, "gain": [gain, 0.1]},
    }
    rows = [
        searched(0, 0.2, 0.1),
        searched(1, 0.4, -0.1),
        {"what": "times", "ms": {"tome/three drops": 2.0}, "asked": 2.0},
    ]
    assert budget.tables(rows).count("\n") == 1, "nothing was looked at yet: the head alone"
    rows += [held("found 0", 250_000), held("found 1", 400_000), held("three drops", 300_000)]
    assert {seed: row["shape"] for seed, row in budget.taken(rows).items()} == {"0": "found 0", "1": "three drops"}
    line = budget.tables(rows).splitlines()[2]
    assert line == "| ToMe | **found 0** | — | 0.2500 | +0.0500 ± 0.0000 | — | 4 2 |"
    mean = budget.taken_tables({"2": rows}).splitlines()[-1]
    assert mean == "| 2 | mean |  | 0.2750 ± 0.0354 | ToMe, three drops: 0.3000 | +0.0250 ± 0.0354 |"


def test_rules_on_numbers():
    """The spread of 1, 2, 3 is 1; pairs are by seed; one seed has no spread."""
    assert Stat((0.01, 0.02, 0.03)).text() == "2.00 ± 1.00" and Stat((0.5,)).text() == "50.00"
    first = {0: Stat((0.5,)), 1: Stat((0.7,)), 2: Stat((0.9,))}
    gap = difference(first, {1: Stat((0.6,)), 2: Stat((0.82,))})
    assert gap is not None and (round(gap.mean, 9), gap.n) == (0.09, 2)
    lone = difference({0: Stat((0.9,))}, {0: Stat((0.1,))})
    assert lone is not None and lone.spread is None
    apart = difference({0: Stat((0.4,)), 1: Stat((0.6,))}, {2: Stat((0.1,)), 3: Stat((0.1,))})
    assert apart is not None and apart.n == 0 and apart.spread == pytest.approx(0.02**0.5)
    assert difference({}, first) is None and paired(None, np.ones(3)) == "—"
    assert table(["a", "b"], [["x", "1"]]) == "| a | b |\n| --- | ---: |\n| x | 1 |"


def test_damaged_results_are_one_line(tmp_path):
    folder = make_study(tmp_path / "study_made", [{"cell": "x"}])
    with pytest.raises(slim.SlimError, match="a row lacks evals, group"):
        Study(folder)
    (folder / "results.jsonl").write_text("not json")
    with pytest.raises(slim.SlimError, match="results.jsonl is no JSON"):
        Study(folder)


def test_speed_of_the_studys_models(tmp_path, capsys):
    folder = make_study(tmp_path / "study_made", [make_row("main", "random", "random", 0.5, 0, [1, 0])])
    assert study_speed.main([str(folder), "--batch", "2", "--rounds", "2"]) == 0
    result = json.loads((folder / "speed.json").read_text())
    assert [(row["variant"], row["keep_rate"]) for row in result["rows"]] == [("dense", 0.5), ("random", 0.5)]
    assert result["rows"][0]["speed_ratio"] == 1 and len(result["rows"][1]["wall"]) == 2
    assert study_speed.main([str(make_study(tmp_path / "study_empty", []))]) == 2
    assert "no finished run" in capsys.readouterr().err
