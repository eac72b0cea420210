"""The study: cells at matched cost, resumable, one config per folder."""

import json
from pathlib import Path

import pytest
from train_tools import shipped

import slimvit_jax as slim
from benchmarks import photo_cells, study, study_cells
from slimvit_jax import training
from slimvit_jax.inference.evaluate import Inference, evaluate
from slimvit_jax.training import build

# The fixture is a minute of work: one worker does it, once.
pytestmark = pytest.mark.xdist_group("study")

ROOT = Path(__file__).parents[2]
MICRO = shipped("study_fashion").model.options.to_dict()

CONFIG = """
import sys
sys.path.insert(0, {tests!r})
from train_tools import shipped, tiny

def get_config():
    config = shipped("study_fashion")
    names, config.schedule = config.schedule, tuple(config.stages.keys())
    config = tiny(config, steps=1)
    config.schedule = names
    config.model.options.depth = 12
    config.eval.keep_rates = (0.7, 0.5)
    config.name = "study_test"
    return config
"""


@pytest.mark.parametrize("rate", [0.9, 0.5])
@pytest.mark.parametrize("method", slim.list_methods())
def test_every_method_is_matched_to_the_same_cost(method, rate):
    options = study_cells.matched_options(MICRO, method, rate)
    cost = slim.flops(slim.create_model("vit", method=method, **MICRO, **options)).total
    target = study_cells.reference_flops(MICRO, rate)
    assert abs(cost / target - 1) < 0.05
    assert target < slim.flops(slim.create_model("vit", **MICRO)).total


def test_cells_have_names_of_their_own_and_configs_that_hold():
    base = shipped("study_fashion")
    cells = list(study_cells.all_cells(base, (0, 1), full=True))
    assert len({cell.name for cell in cells}) == len(cells)
    assert {cell.method for cell in cells} == {"dense", *slim.list_methods()}
    short = [cell.name for cell in study_cells.all_cells(base, (0, 1))]
    assert len(set(short)) == len(short) and {*short} < {cell.name for cell in cells}
    seeds = [sum(name.endswith(f"seed{seed}") for name in short) for seed in (0, 1)]
    assert 0 < seeds[1] < seeds[0]  # the central comparison has every seed
    assert "main/life_regression/0.5/seed1" in short and "main/sit/0.7/seed1" not in short
    for cell in cells:
        if not cell.schedule:
            assert cell.group == "untuned"
            continue
        config = training.validate(cell.config(base, "dense.safetensors"))
        epochs = sum(config.stages[name].epochs for name in config.schedule)
        assert epochs == 2
        assert "dense" not in config.stages


def test_photographs_are_chosen_on_held_out_images_and_matched():
    base = shipped("study_photos")
    base.model.options.num_classes = 10
    cells = list(photo_cells.all_cells(base, (0, 1)))
    assert len({cell.name for cell in cells}) == len(cells)
    options = base.model.options.to_dict()
    for cell in cells:
        held_out = cell.config(base, "dense.safetensors").data.eval_split == "train[80%:]"
        assert held_out == (cell.group == "choose")
        if cell.method != "dense":
            model = slim.create_model(base.model.name, method=cell.method, **options, **cell.options)
            target = study_cells.reference_flops(options, cell.train_rate, base.model.name)
            assert abs(slim.flops(model).total / target - 1) < 0.01, cell.name


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A study of two cells, and the arguments that made it."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "config.py").write_text(CONFIG.format(tests=str(ROOT / "tests")))
    arguments = [f"--config={folder / 'config.py'}", f"--workdir={folder / 'work'}", "--seeds=0"]
    arguments += ["--only=(main/(life_regression|tome)|untuned/tome)/0.7/seed0"]
    assert study.main(arguments) == 0
    return folder / "work", arguments


def test_results_are_complete(done):
    work, _ = done
    rows = [json.loads(line) for line in (work / "results.jsonl").read_text().splitlines()]
    main = {row["method"]: row for row in rows if row["group"] == "main"}
    assert set(main) == {"life_regression", "tome"}
    life = {(e["keep_rate"], e["lives"]) for e in main["life_regression"]["evals"]}
    assert life == {(rate, lives) for rate in (0.7, 0.5) for lives in ("learned", "random")}
    assert [e["lives"] for e in main["tome"]["evals"]] == [None]
    (untuned,) = [row for row in rows if row["group"] == "untuned"]
    assert untuned["epochs"] == 0 and untuned["options"] == main["tome"]["options"]
    assert {row["group"] for row in rows} > {"main", "stages", "temperature"}  # a cell answers several questions
    assert all(e["examples"] == 360 and 0 <= e["accuracy"] <= 1 for row in rows for e in row["evals"])
    about = json.loads((work / "study.json").read_text())
    assert about["scale"] == "test" and about["dense"]["examples"] == 360
    assert {path.name for path in work.iterdir()} == {
        "study.json", "results.jsonl", "dense.safetensors", "life.safetensors", "runs"
    }  # fmt: skip
    options = about["config"]
    assert options["model.options.embed_dim"] == 16
    # without tuning: the dense weights as they are
    shape = {k.removeprefix("model.options."): v for k, v in options.items() if k.startswith("model.options.")}
    model = slim.create_model("vit", "tome", **shape, **untuned["options"])
    config = training.load_config(work.parent / "config.py")
    data = build.eval_data(config, build.build_source(config, "test"))
    found = evaluate(Inference(model, slim.load(model, work / "dense.safetensors")), batches=data)
    assert found.top1 == untuned["evals"][0]["accuracy"]


def test_the_same_command_does_nothing_twice(done, capsys):
    work, arguments = done
    before = (work / "results.jsonl").read_bytes(), (work / "dense.safetensors").stat().st_mtime_ns
    assert study.main(arguments) == 0
    assert f"3 of 3 runs are done: {work}" in capsys.readouterr().out
    assert ((work / "results.jsonl").read_bytes(), (work / "dense.safetensors").stat().st_mtime_ns) == before
    assert study.main([*arguments, "--list"]) == 0
    assert "3 of 3 done" in capsys.readouterr().out


def test_a_study_older_than_a_field_goes_on(done, tmp_path):
    """Fields that it does not know have their defaults; others still differ."""
    work, arguments = done
    about = json.loads((work / "study.json").read_text())
    assert about["config"].pop("labeller.name") == "" and about["config"].pop("stages.dense.ema") == 0.0
    (tmp_path / "study.json").write_text(json.dumps(about))
    config = training.load_config(arguments[0].removeprefix("--config="))
    study.Study(config, tmp_path)
    config.stages.dense.ema = 0.9
    with pytest.raises(slim.SlimError, match="stages.dense.ema: 0.0 -> 0.9"):
        study.Study(config, tmp_path)


def test_lost_dense_weights_are_trained_again(done, tmp_path):
    """The study keeps its dense model's figures and adds those of the new one; rows say which they start from."""
    work, arguments = done
    for name in ("study.json", "results.jsonl"):
        (tmp_path / name).write_bytes((work / name).read_bytes())
    study.Study(training.load_config(arguments[0].removeprefix("--config=")), tmp_path).dense_weights()
    before, after = (json.loads((folder / "study.json").read_text()) for folder in (work, tmp_path))
    (again,) = after.pop("dense_again")
    assert after == before and again["dense"]["examples"] == 360
    rows = [json.loads(line) for line in (work / "results.jsonl").read_text().splitlines()]
    assert {row["dense_accuracy"] for row in rows} == {before["dense"]["accuracy"]}
    assert (tmp_path / "dense.safetensors").exists()


@pytest.mark.parametrize(("name", "config"), [("study_micro", "study_fashion"), ("study_photos", "study_photos")])
def test_committed_studies_go_on(name, config):
    """Whatever version of the library began them: its file and today's config are one study."""
    config = shipped(config)
    facts = json.loads((ROOT / "results" / name / "study.json").read_text())["config"]
    config.init.path, config.data.data_dir = facts["init.path"], facts["data.data_dir"]
    begun = study.Study(config, ROOT / "results" / name)
    cells = photo_cells if name == "study_photos" else study_cells
    assert len({cell.name for cell in cells.all_cells(config, [0, 1, 2])} & begun.done) > 20


def test_a_damaged_study_is_named(done, tmp_path):
    work, arguments = done
    (tmp_path / "study.json").write_bytes((work / "study.json").read_bytes())
    (tmp_path / "results.jsonl").write_text('{"cell": ')
    with pytest.raises(slim.SlimError, match="results.jsonl is no JSON"):
        study.Study(training.load_config(arguments[0].removeprefix("--config=")), tmp_path)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--config.stages.dense.epochs=3"], "stages.dense.epochs"),
        (["--only=nothing"], "matches no cell"),
        (["--seeds=a"], "--seeds=a"),
    ],
)
def test_bad_input_is_one_line(done, capsys, more, words):
    assert study.main([*done[1], *more]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
