"""The commands on a training run's folder, and the README's promises that can be read without running them."""

import json
import re

import pytest
from train_tools import ROOT, tiny_config

from slimvit_jax import convert
from slimvit_jax.__main__ import main
from slimvit_jax.training import build


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """What training leaves behind, with random weights; its last stage is not done yet."""
    folder = tmp_path_factory.mktemp("run")
    config = tiny_config()
    model = build.build_model(config)
    variables = build.init_variables(model, 0)
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    convert.save(model, variables, folder / "weights" / "predictor.safetensors")
    plain = {"params": {name: value for name, value in variables["params"].items() if name != "slim"}}
    convert.save(build.build_model(config, slimmed=False), plain, folder / "weights" / "dense.safetensors")
    return folder


def results(capsys, *arguments):
    assert main(["evaluate", *arguments, "--limit=30", "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)["results"]


def test_a_run_is_evaluated_at_any_keep_rate(workdir, capsys):
    rows = results(capsys, f"--workdir={workdir}", "--keep-rates=1,0.5")
    assert [row["token_counts"] for row in rows] == [[16, 16, 16], [16, 8, 4]]
    assert rows[0]["model"].endswith("/predictor"), "the last stage that is done"
    (dense,) = results(capsys, f"--workdir={workdir}", "--stage=dense")
    assert dense["method"] == "dense" and dense["loss"] == pytest.approx(rows[0]["loss"], rel=1e-5)


def test_another_method_on_the_weights_of_a_run(workdir, capsys):
    (row,) = results(capsys, f"--workdir={workdir}", "--method=topk", "--keep-rate=0.5", "--set=locations=(1, 2)")
    assert row["method"] == "topk" and row["token_counts"][-1] == 4


BAD = {
    "unknown stage": (["--stage=last"], "choices: dense, predictor"),
    "stage not done": (["--stage=backbone"], "'backbone'"),
    "keep rate of a dense stage": (["--stage=dense", "--keep-rate=0.5"], "is dense"),
    "option": (["--set=depht=3"], "'depht'"),
    "model too": (["--model=vit"], "--workdir names model and weights"),
    "fresh parameters": (["--method=dynamicvit", "--set=locations=(2, 3)"], "--init-missing=score_predictor"),
    "another size": (["--set=img_size=32"], "--resample-pos-embed"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_with_a_run(case, workdir, capsys):
    arguments, words = BAD[case]
    assert main(["evaluate", f"--workdir={workdir}", *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_weights_are_fitted_as_in_convert(workdir, capsys):
    """What an error proposes, typed as it stands there."""
    (row,) = results(capsys, f"--workdir={workdir}", "--set=img_size=32", "--resample-pos-embed")
    assert row["token_counts"][0] == 64
    (row,) = results(capsys, f"--workdir={workdir}", "--method=dynamicvit", "--init-missing=method")
    assert row["method"] == "dynamicvit" and row["token_counts"][0] == 11


def test_damaged_config_is_named(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"name": ')
    assert main(["evaluate", f"--workdir={tmp_path}"]) == 2
    assert "config.json" in capsys.readouterr().err


def test_readme_begins_with_the_main_job_and_the_tests():
    text = (ROOT / "README.md").read_text()
    first, second = re.findall(r"^```bash\n(.*?)^```", text, re.M | re.S)[:2]
    assert "-m venv .venv" in first and "-m venv .venv" in second
    (config,) = re.findall(r"train\.py --config=(\S+)", first)
    assert (ROOT / config).is_file() and "pytest" in second
    for path in re.findall(r"\]\(((?!http)[^)]+)\)", text):
        assert (ROOT / path).exists(), path
