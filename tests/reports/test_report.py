"""The report of a run: what it measures, what it says, and the pictures."""

import itertools
import json
import os

import jax
import matplotlib
import numpy as np
import pytest
from PIL import Image
from train_tools import tiny_config

import slimvit_jax as slim
from slimvit_jax import training
from slimvit_jax.__main__ import main
from slimvit_jax.cli import train
from slimvit_jax.reports import patches, report_text, style, visualize
from slimvit_jax.reports.report import write_report
from slimvit_jax.training import RunResult, build


def untrained_run(folder):
    """A run whose weights are random: the report does not care."""
    config = tiny_config(steps=1)
    config.eval.keep_rates = (0.9, 0.5)
    config.report.update(images=2, seeds=2, batch_size=120, rounds=2)
    model, dense = build.build_model(config), build.build_model(config, slimmed=False)
    slimmed = build.init_variables(model, 0)
    plain = {**slimmed, "params": {name: value for name, value in slimmed["params"].items() if name != "slim"}}
    variables = {"dense": plain, "predictor": slimmed, "backbone": jax.tree.map(lambda a: 1.1 * a, slimmed)}
    seconds = dict.fromkeys(variables, 1.0)
    return config, RunResult(config, folder, model, dense, variables, {}, seconds, False)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, write_report(folder, *untrained_run(folder))


def test_report_json_is_whole(written):
    folder, facts = written
    assert json.loads((folder / "report.json").read_text()) == facts
    assert [row["name"] for row in facts["rows"]] == ["dense", "all kept", "0.9", "0.5"]
    assert all(row["count"] == 120 and row["images_per_second"] > 0 for row in facts["rows"])
    assert facts["rows"][0]["token_counts"] == [16, 16, 16] and facts["rows"][3]["token_counts"] == [16, 8, 4]
    assert facts["rows"][0]["speed_ratio"] == 1 and "minus_dense" not in facts["rows"][0]
    for row in facts["rows"][2:]:
        assert set(row["by_stage"]) == {"predictor", "backbone"} and len(row["random"]["each"]) == 2
        lead = row["random"]["learned_minus_random"]
        assert lead["difference"] == pytest.approx(row["top1"] - np.mean(row["random"]["each"]), abs=1e-6)


def test_random_orders_keep_everything_at_rate_one(tmp_path):
    """At keep rate 1 no order matters: a lead of exactly 0 on the same weights."""
    config, result = untrained_run(tmp_path)
    config.eval.keep_rates, config.report.images = (1.0,), 0
    row = write_report(tmp_path, config, result)["rows"][2]
    assert row["random"]["learned_minus_random"] == {"difference": 0.0, "stderr": 0.0}
    assert row["top1"] == pytest.approx(row["by_stage"]["backbone"])


def test_markdown_marks_whose_numbers_they_are(written):
    folder, facts = written
    text = (folder / "report.md").read_text()
    assert "Not measured here: Table III" in text and "120 held-out images" in text
    for path in facts["figures"].values():
        assert f"({path})" in text and Image.open(folder / path).size[0] > 300
    assert not [p for p in folder.rglob(".*")], "temporary files are gone"
    widths = {}
    for block in text.split("\n\n"):
        rows = [line.count("|") for line in block.splitlines() if line.startswith("|")]
        widths[block[:20]] = len(set(rows)) <= 1
    assert all(widths.values()), "every table has as many cells in each row as in its head"


def test_summary_table_has_a_row_per_keep_rate(written, capsys):
    folder, facts = written
    report_text.print_summary(facts, folder)
    out = capsys.readouterr().out
    assert all(word in out for word in ("dense", "0.9", "0.5", "images/s", "report.md"))


def test_run_of_dense_stages_only_has_one_row(tmp_path):
    config, result = untrained_run(tmp_path)
    config.method.name = ""
    for stage in result.config.schedule:
        config.stages[stage].slimmed = False
    dense = RunResult(
        config, tmp_path, result.dense_model, result.dense_model, {"dense": result.variables["dense"]}, {}, {}, False
    )
    facts = write_report(tmp_path, config, dense)
    assert [row["name"] for row in facts["rows"]] == ["dense"] and facts["figures"] == {}
    assert "Learned" not in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize("method, options", [("topk", {"keep_rate": 0.5, "locations": (1, 2)}), ("tome", {"r": 2})])
def test_other_methods_have_a_report_too(tmp_path, method, options):
    config, result = untrained_run(tmp_path)
    config.method.name, config.method.options = method, options
    config.eval.keep_rates = (0.5,)
    config.report.images = 1
    model, weights = build.build_model(config), result.variables["dense"]
    result = RunResult(config, tmp_path, model, result.dense_model, {"fine": weights}, {}, {}, False)
    config.schedule = ("fine",)
    config.stages.fine = config.stages.backbone
    facts = write_report(tmp_path, config, result)
    assert len(facts["rows"]) == 3 and (tmp_path / "report.md").exists()


def test_a_run_of_drawn_rates_and_masks_is_told_as_such(tmp_path):
    config, result = untrained_run(tmp_path)
    config.method.options.update(hard=True, sampled_rates=(0.9, 0.5))
    config.eval.keep_rates, config.report.images, config.report.seeds = (0.5,), 0, 1
    facts = write_report(tmp_path, config, result)
    assert facts["trained_at"] == {"sampled_rates": [0.9, 0.5]}
    told = lambda at: report_text.markdown({**facts, "trained_at": at})
    assert (
        "in 3 stages at keep rates drawn anew for every image from 0.9, 0.5: dense"
        in (tmp_path / "report.md").read_text()
    )
    assert "in 3 stages at keep rate 0.7: dense" in told({"keep_rate": 0.7}) and "in 3 stages: dense" in told({})


def test_a_report_that_fails_leaves_the_run_done(tmp_path, monkeypatch, capsys):
    """Its numbers stay when a picture fails; the report is written anew from the folder."""
    config, result = untrained_run(tmp_path)
    config.eval.keep_rates, config.schedule = (0.5,), tuple(result.variables)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    for name, variables in result.variables.items():
        slim.save(result.model if "slim" in variables["params"] else result.dense_model, variables,
                  tmp_path / "weights" / f"{name}.safetensors")  # fmt: skip

    def fails(*args, **kwargs):
        raise UnicodeEncodeError("utf-8", "\udcff", 0, 1, "surrogates not allowed")

    with monkeypatch.context() as patch:
        patch.setattr(visualize, "draw_accuracy_speed", fails)
        with train.reported("slimvit train", str(tmp_path)):
            write_report(tmp_path, config, result)
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"slimvit report --workdir {tmp_path}" in error and "surrogates" in error
    assert json.loads((tmp_path / "report.json").read_text())["rows"] and not (tmp_path / "report.md").exists()
    assert main(["report", f"--workdir={tmp_path}"]) == 0
    assert (tmp_path / "report.md").exists() and (tmp_path / "figures" / "lives.png").exists()


def test_a_run_on_names_of_all_kinds(tmp_path, capsys):
    """Trained, reported, predicted and drawn: names are data, in markup, mathematics or bytes that are no text."""
    random, classes, files = np.random.default_rng(0), [b"a$_{b$", b"[b]", b"caf\xe9"], []
    for split, name in itertools.product([b"train", b"val"], classes):
        folder = os.path.join(os.fsencode(tmp_path), b"data", split, name)
        os.makedirs(folder)
        for number in range(4):
            files.append(os.path.join(folder, b"ph\xff [copy]%d.png" % number))
            with open(files[-1], "wb") as file:
                Image.fromarray(random.integers(0, 256, (16, 16), np.uint8)).save(file, "PNG")
    config = tiny_config(steps=1)
    config.schedule = ("dense", "backbone")
    config.data.update(name="folder", data_dir=str(tmp_path / "data"), batch_size=4)
    config.data.update(train_split="train", eval_split="val")
    config.model.options.num_classes = 3
    config.eval.keep_rates = (0.5,)
    config.report.update(images=3, seeds=1, batch_size=12, rounds=2)
    run = tmp_path / "run"
    facts = write_report(run, config, training.run(config, run))
    assert facts["rows"][0]["count"] == 12 and (run / "figures" / "lives.png").is_file()
    chosen = [os.fsdecode(file) for file in (files[-1], files[-5])]
    assert main(["predict", *chosen, f"--workdir={run}", f"--out={tmp_path / 'out'}"]) == 0
    assert main(["visualize", *chosen, f"--workdir={run}", f"--out={tmp_path / 'out'}"]) == 0
    said = capsys.readouterr().out
    assert r"caf\xe9" in said and "a$_{b$" in said and r"ph\xff [copy]3.png" in said
    assert len(list((tmp_path / "out").iterdir())) == 4

    (tmp_path / "data").rename(tmp_path / "moved")
    (run / "report.md").unlink()
    assert main(["report", f"--workdir={run}"]) == 2 and str(tmp_path / "data") in capsys.readouterr().err
    assert main(["report", f"--workdir={run}", f"--data-dir={tmp_path / 'moved'}"]) == 0
    assert (run / "report.md").exists() and json.loads((run / "report.json").read_text())["rows"][0]["count"] == 12


def test_words_claim_only_what_two_standard_errors_carry(written):
    facts = written[1]

    def told(difference, stderr):
        row = {**facts["rows"][-1], "minus_dense": {"difference": difference, "stderr": stderr}}
        return report_text.markdown({**facts, "rows": [facts["rows"][0], row]})

    assert "do not tell them apart" in told(-0.01, 0.008) and "do not tell them apart" in told(0.0, 0.0)
    assert "Apart from the dense model" in told(-0.03, 0.008)


def test_paper_tables_are_packaged():
    table = report_text.paper_tables()["table3_keep_rate"]
    assert table["keep_rate"] == [1.0, 0.9, 0.8, 0.7] and table["top1"][-1] == 79.3


def test_soft_weight_is_equation_7():
    assert visualize.soft_weight(5.0, [5.0], 2.0) == pytest.approx([0.5])
    assert visualize.soft_weight(5.0, [4.0], 1.5)[0] == pytest.approx(1 / (1 + np.exp(-1.5)))
    assert visualize.soft_weight(0.0, [1e4], 3.0)[0] == 0.0


@pytest.mark.parametrize("shape, grid", [((8, 8, 1), (4, 4)), ((48, 32, 3), (6, 4)), ((200, 200), (50, 50))])
def test_lives_are_drawn_for_any_image_and_grid(tmp_path, shape, grid):
    rng = np.random.default_rng(0)
    number = grid[0] * grid[1]
    images = [rng.integers(0, 256, shape).astype(np.uint8), rng.random(shape)]
    kept = [np.stack([rng.permutation(number)[: number // 2] for _ in images])]
    lives = rng.normal(8, 3, (2, number))
    path = patches.draw_lives(tmp_path / "x.png", images, grid=grid, kept=kept, lives=lives, life_range=(4, 12))
    assert Image.open(path).size[0] > 300
    patches.draw_lives(tmp_path / "y.png", images[:1], grid=grid, kept=kept)


@pytest.mark.parametrize("side", [8, 128], ids=["cells", "photograph"])
def test_dropped_patches_are_dark_and_kept_ones_are_not(tmp_path, side):
    """Of a red image one patch in four is kept: beside the whole image a quarter of it stays bright."""
    image = np.zeros((side, side, 3), np.uint8)
    image[..., 0] = 230
    path = patches.draw_lives(tmp_path / "x.png", [image], grid=(2, 2), kept=[np.array([[3, -1]])])
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    bright = (pixels[..., 0] > 150) & (pixels[..., 0] - pixels[..., 1] > 60)
    whole, part = np.array_split(bright, 2, axis=1)
    assert 0.2 < part.sum() / whole.sum() < 0.3


def test_groups_are_drawn_in_their_mean_colour(tmp_path):
    image = np.zeros((4, 4, 3), np.uint8)
    image[:, 2:] = 200
    owner = np.array([[0, 0], [1, 1]]).reshape(-1)
    mean = patches.mean_colours(image / 255.0, owner, (2, 2))
    assert np.allclose(mean, 100 / 255)
    path = patches.draw_groups(tmp_path / "g.png", [image], grid=(2, 2), groups=[owner[None]], titles=["$_{["])
    assert Image.open(path).size[0] > 300


def test_small_scores_are_printed_in_a_unit_that_shows_them():
    assert patches.unit_of(np.array([0.0002, 0.0131])) == (1e-3, " (in 1e-3)")
    assert patches.unit_of(np.array([0.3, 12.0])) == (1.0, "") and patches.unit_of(np.zeros(3)) == (1.0, "")


def test_captions_fit_their_columns():
    with matplotlib.rc_context(style.OF_DATA):
        assert style.fitted("short", 100, 9) == "short"
        lines = style.fitted("a$_{b$ with a long name " * 5, 100, 9).split("\n")
    assert len(lines) == 2 and lines[1].endswith("…") and max(map(len, lines)) < 30


def test_pictures_of_no_known_kind_are_refused(tmp_path):
    with pytest.raises(slim.SlimError, match="endings"):
        visualize.draw_weight_curves(tmp_path / "x.docx")
    with pytest.raises(slim.SlimError, match=r"\(2, 2, 5\)"):
        patches.draw_lives(tmp_path / "x.png", [np.zeros((2, 2, 5))], grid=(2, 2))
    assert not list(tmp_path.iterdir())
