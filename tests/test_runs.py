"""`slim.open_run`: the model of a run at any stage, with any method, at any budget."""

import json

import jax
import numpy as np
import pytest
from train_tools import tiny_config

import slimvit_jax as slim
from slimvit_jax import convert
from slimvit_jax.errors import SlimError
from slimvit_jax.training import build
from slimvit_jax.training.config import default_config, stage_defaults

IMAGES = np.random.default_rng(0).standard_normal((2, 16, 16, 1), np.float32)


def run_of(folder, method, options, model="vit", backbone=None, stage_options=None):
    """What a run of a dense stage and one with the method leaves, its weights random; and these weights."""
    config = tiny_config()
    config.model.name = model
    if backbone is not None:
        config.model.options = backbone
    config.method.name, config.method.options = method, options
    config.stages.tuned = stage_defaults()
    config.stages.tuned.method_options = stage_options or {}
    config.schedule = ("dense", "tuned")
    variables = {}
    for name, slimmed in (("dense", False), ("tuned", True)):
        made = build.build_model(config, slimmed, name)
        variables[name] = build.init_variables(made, len(name))
        convert.save(made, variables[name], folder / "weights" / f"{name}.safetensors")
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    return slim.open_run(folder), variables


def same(first, second):
    return jax.tree.all(jax.tree.map(np.array_equal, first, second))


def without_method(variables):
    return {**variables, "params": {name: v for name, v in variables["params"].items() if name != "slim"}}


def test_life_regression_at_any_budget(tmp_path):
    options = {"budgets": (16, 9, 5), "hard": True}
    run, weights = run_of(tmp_path, "life_regression", options, stage_options={"temperature": 2.0})
    assert list(run.stages) == ["dense", "tuned"] and run.stage() == "tuned"
    model, variables = run.model()
    assert model.slim.plan.token_counts == (16, 9, 5) and model.slim.temperature == 2.0 and model.slim.hard
    assert same(variables, weights["tuned"])
    model, variables = run.model(keep_rate=0.5, locations=(1, 2))
    assert model.slim.plan.token_counts == (16, 8, 4) and same(variables, weights["tuned"])
    model, variables = run.model(method="none")
    assert model.slim.method == "dense" and same(variables, without_method(weights["tuned"]))
    model, variables = run.model(stage="dense")
    assert model.slim.method == "dense" and same(variables, weights["dense"])
    assert run.class_names == tuple("0123456789") or len(run.class_names) == 10


METHODS = {
    "dynamicvit": {"keep_rate": 0.6, "locations": (2, 3)},
    "sit": {"keep_rate": 0.6, "stage_blocks": (1, 1, 1)},
    "evo": {"keep_rate": 0.6, "locations": (2, 3)},
}


@pytest.mark.parametrize("method", METHODS)
def test_another_method_runs_on_the_backbone_of_any_run(method, tmp_path):
    """Methods with parameters and names of their own: only the backbone's weights go on, at the run's places."""
    run, weights = run_of(tmp_path, method, METHODS[method])
    model, variables = run.model(method="topk")
    places = (1, 2) if method == "sit" else (2, 3)
    assert model.slim.locations == places and model.slim.keep_rate == 0.6
    assert same(variables, without_method(weights["tuned"]))
    assert np.isfinite(model.apply(variables, IMAGES)).all()
    if method != "sit":  # whose parameters have the shapes of their budget
        own, variables = run.model(keep_rate=0.5)
        assert own.slim.method == method and own.slim.keep_rate == 0.5 and same(variables, weights["tuned"])
    with pytest.raises(SlimError, match=r"life_predictor.*init_missing"):
        run.model(method="life_regression", locations=(1, 2))
    model, variables = run.model(method="life_regression", locations=(1, 2), init_missing="method", inference=True)
    assert "life_predictor" in variables["params"]["slim"] and set(variables["params"]["slim"]) == {"life_predictor"}


def test_a_name_that_implies_a_method_can_be_dense(tmp_path):
    small = {"img_size": 16, "patch_size": 4, "in_chans": 1, "embed_dim": 16, "depth": 3, "num_heads": 2}
    small |= {"num_classes": 10, "p_emb": "none"}
    run, weights = run_of(tmp_path, "sit", {"locations": (1, 2)}, "sit_tiny" if "sit_tiny" in slim.list_models() else
                          "sit_t", small)  # fmt: skip
    assert run.model()[0].slim.method == "sit"
    for asked in ({"method": "none"}, {"stage": "dense"}, {"method": slim.Slimming()}):
        model, variables = run.model(**asked)
        assert model.slim.method == "dense" and "slim" not in variables["params"]
    assert same(run.model(stage="dense")[1], weights["dense"])


def test_all_stages_at_once(tmp_path):
    run, weights = run_of(tmp_path, "topk", {"locations": (1, 2)})
    result = run.result()
    assert same(result.variables, weights) and result.model.slim.method == "topk"


def test_what_is_no_run_is_refused_in_one_line(tmp_path):
    for content, words in (
        (None, "no config.json"),
        ("{", "config.json"),
        ('{"architecture": "vit"}', "something else"),
    ):
        if content is not None:
            (tmp_path / "config.json").write_text(content)
        with pytest.raises(SlimError, match=words):
            slim.open_run(tmp_path)
    config = tiny_config().to_dict()
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(SlimError, match="no stage is done yet"):
        slim.open_run(tmp_path)
    assert default_config().to_dict().keys() == config.keys()
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / f"{config['schedule'][0]}.safetensors").touch()
    for content in ("[]", "{}", '{"class_names": 5}'):
        (tmp_path / "data.json").write_text(content)
        with pytest.raises(SlimError, match="data.json: damaged: it holds no class names"):
            slim.open_run(tmp_path).create()


def test_bad_wishes_name_the_choices(tmp_path):
    run, _ = run_of(tmp_path, "topk", {"locations": (1, 2)})
    with pytest.raises(SlimError, match="'tunde'; did you mean 'tuned'"):
        run.model(stage="tunde")
    with pytest.raises(SlimError, match="is dense"):
        run.model(stage="dense", keep_rate=0.5)
    with pytest.raises(SlimError, match="unknown method 'topq'"):
        run.model(method="topq")
