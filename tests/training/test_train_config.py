"""Configs: everything wrong is one clear line, and every shipped file starts."""

from __future__ import annotations

import ast
import functools
import json
import re
from pathlib import Path

import jax
import pytest
from train_tools import ROOT, few_images, run_train, shipped, tiny, tiny_config, write_config

from slimvit_jax import training
from slimvit_jax.__main__ import main
from slimvit_jax.errors import SlimError
from slimvit_jax.training import build, loading, workdir
from slimvit_jax.training import config as configs

SHIPPED = sorted(file.stem for file in (ROOT / "configs").glob("*.py"))


def told(name: str) -> str:
    """The docstring of a shipped config, on one line."""
    text = ast.get_docstring(ast.parse((ROOT / "configs" / f"{name}.py").read_text()), clean=False)
    return " ".join((text or "").split())


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_config_tells_its_command_source_and_outcome(name):
    """Accuracies are those of results/ or the papers'; the recipe is in the file, apart from the fields' defaults."""
    program = "python -m benchmarks.study" if name.startswith("study_") else "python train.py"
    assert re.search(
        rf"{program} --config=configs/{name}.py --workdir=\S+ .*Source: .+ Losses: .+ Outcome: .+", told(name)
    )
    outcome = told(name).rpartition("Outcome: ")[2]
    for path in re.findall(r"\b(?:results|docs|configs)/[\w./]*\w", outcome):
        assert (ROOT / path).exists(), path
    pages = [(ROOT / page).read_text() for page in ("docs/results.md", "results/digits/report.md")]
    measured = set(re.findall(r"\d+\.\d\d", "".join(pages)))
    papers = set(re.findall(r"\d+\.\d", next((ROOT / "slimvit_jax").rglob("paper_tables.json")).read_text()))
    for sentence in outcome.split(". "):
        quoted = set(re.findall(r"(\d+\.?\d*) %", sentence))
        assert quoted <= (papers if "paper" in sentence else measured), sentence
    imports = re.findall(r"^(?:from|import) .*", (ROOT / "configs" / f"{name}.py").read_text(), re.MULTILINE)
    assert imports == ["from slimvit_jax.training.config import add_stage, default_config"]


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_config_starts_shrunk(name):
    """Model, losses, optimiser, augmentation and data of every stage fit together: a step is traced on a real batch."""
    shipped(name)
    config = training.validate(few_images(tiny(shipped(name))))
    source = build.build_source(config, config.data.train_split)
    for index, name_of_stage in enumerate(config.schedule):
        stage = build.build_stage(config, name_of_stage, 3)
        batch = next(build.train_data(config, stage.config, index, source))
        assert stage.steps == 2 and batch["image"].shape == (16, *stage.model.img_size, stage.model.in_chans)
        state = jax.eval_shape(lambda stage=stage: stage.state(*stage.fresh()))
        after, metrics = jax.eval_shape(stage.step_function(), state, batch)
        assert jax.tree.structure(after) == jax.tree.structure(state) and metrics.shape[0] >= 5
        terms = (f"{weight:g} {loss}" if weight != 1 else loss for loss, weight in stage.options.loss_weights.items())
        assert f"{name_of_stage}: {' + '.join(terms)}." in told(name)


@pytest.mark.parametrize("name", ["digits", "imagenet_deit_small"])
def test_shipped_config_runs_shrunk(name, tmp_path):
    config = few_images(tiny(shipped(name), steps=1))
    config.cache_dir = "/tmp/slimvit_jax_test_cache"
    result = training.run(config, tmp_path)
    assert list(result.variables) == list(config.schedule)


@pytest.mark.parametrize(
    ("field", "text", "words"),
    [
        ("stages.dense.epoch", "3", ["'epoch'", "did you mean 'epochs'"]),
        ("stage.dense.epochs", "3", ["'stage'", "did you mean 'stages'"]),
        ("stages.dens.epochs", "3", ["'dens'", "did you mean 'dense'"]),
        ("seed.x", "3", ["'seed'", "value", "'x'"]),
        ("data", "3", ["'data'", "group", "batch_size"]),
        ("data.batch_size", "many", ["data.batch_size", "'many'", "whole number"]),
        ("data.batch_size", "0", ["data.batch_size", "0", "at least 1"]),
        ("data.batch_size", "2.5", ["data.batch_size", "2.5", "whole number"]),
        ("stages.dense.ema", "1.0", ["ema", "1.0", "[0, 1)"]),
        ("stages.dense.trainable", "backbon", ["trainable", "backbon", "backbone"]),
        ("stages.dense.trainable", "method", ["'method'", "dense"]),
        ("stages.dense.trainable", "['(']", ["'('", "regular expression"]),
        ("stages.dense.lr_schedule", "cosin", ["cosin", "cosine"]),
        ("schedule", "dense,predictr", ["predictr", "predictor"]),
        ("schedule", "predictor,dense", ["dense", "after"]),
        ("eval.keep_rates", "(0.9, 1.5)", ["keep_rates", "1.5"]),
        ("dist.mode", "maybe", ["maybe", "auto"]),
        ("seed", str(2**70), ["config.seed", "2147483647"]),
        ("stages.dense.lr.backbone", "nan", ["lr.backbone", "'nan'", "number"]),
        ("stages.dense.epochs", "inf", ["epochs", "'inf'"]),
        ("stages.dense.weight_decay", "-1", ["weight_decay", "at least 0"]),
        ("stages.dense.lr_scale", "(('a', 'b'),)", ["lr_scale", "'b'"]),
        ("preprocess.mean", "nan", ["preprocess.mean", "nan", "finite"]),
        ("preprocess.std", "0.5,inf", ["preprocess.std", "inf"]),
        ("augment.hflip", "2", ["hflip", "[0, 1]"]),
        ("model.options.qk_norm", "no", ["model.options.qk_norm", "'no'", "True or False"]),
        ("method.options.hard", "0", ["method.options.hard", "True or False"]),
        ("stages.dense.model_options.drop_path_rate", "1", ["drop_path_rate", "[0, 1)"]),
        ("stages.dense.loss_weights.classification", "nan", ["loss_weights.classification", "number"]),
        ("init.options.strict", "False", ["init.options", "'strict'", "init_missing"]),
        *[
            ("init.options.resample_pos_embed", text, ["resample_pos_embed", text, "True or False"])
            for text in ("1", "None", "(2,)", "yes", "(-2, -8)")
        ],
        ("labeller.load.inference", "maybe", ["labeller.load.inference", "True or False"]),
        ("report.enabled", "perhaps", ["report.enabled", "'perhaps'", "True or False"]),
    ],
)
def test_wrong_override_is_one_line(field, text, words):
    config = tiny_config()
    with pytest.raises(SlimError) as caught:
        loading.override(config, field, text)
        training.validate(config)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def test_words_become_what_their_owner_takes():
    words = {
        "model.options.qk_norm": ("false", False),
        "model.options.init_values": ("1e-5", 1e-5),
        "method.options.hard": ("False", False),
        "method.options.budgets": ("none", None),
        "method.options.keep_rate": ("0.9,0.8", (0.9, 0.8)),
        "stages.dense.model_options.drop_path_rate": ("0.1", 0.1),
        "init.options.init_missing": ("head, life_predictor", ("head", "life_predictor")),
        "init.options.resample_pos_embed": ("8,4", (8, 4)),
        "data.options.allow_missing_classes": ("false", False),
        "preprocess.std": ("0.5", (0.5,)),
    }
    config = tiny_config()
    config.data.name = "folder"
    for field, (text, value) in words.items():
        loading.override(config, field, text)
        *groups, last = field.split(".")
        found = functools.reduce(lambda group, key: group[key], groups, config)[last]
        assert found == value and type(found) is type(value), field
    training.validate(config)


def test_options_follow_the_names_whatever_the_order(tmp_path):
    file = write_config(tmp_path, "")
    overrides = [("method.options.gumbel", "false"), ("method.name", "dynamicvit"), ("method.options.locations", "2")]
    config = training.load_config(file, overrides)
    assert config.method.options.gumbel is False and config.method.options.locations == (2,)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"eps": 0.1}, "unknown option of method 'avit' 'eps'; choices: .*halting_eps"),
        ({"img_size": 8}, "img_size is given twice"),
    ],
)
def test_an_option_has_one_place(options, words):
    config = tiny_config()
    config.method.name = "avit"
    config.method.options = options
    with pytest.raises(SlimError, match=words):
        build.build_model(config)


def test_overrides_take_the_type_of_the_field():
    config = tiny_config()
    pairs = [
        "--config.seed=7",
        "--config.stages.dense.lr.backbone=1",
        "--config.name=3",
        "--config.log.tensorboard=true",
    ]
    pairs += [
        "--config.schedule=dense",
        "--config.method.options.temperature=2.0",
        "--config.eval.keep_rates",
        "(0.5,)",
    ]
    for field, text in training.parse_overrides(pairs):
        loading.override(config, field, text)
    training.validate(config)
    assert (config.seed, config.name, config.log.tensorboard, config.schedule) == (7, "3", True, ("dense",))
    assert config.stages.dense.lr.backbone == 1.0 and config.method.options.temperature == 2.0
    assert config.eval.keep_rates == (0.5,)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model.name": "vitt"}, ["vitt", "vit"]),
        ({"model.options.embed_dims": "16"}, ["embed_dims", "embed_dim"]),
        ({"method.options.keep_rates": "0.5"}, ["keep_rates", "keep_rate"]),
        ({"method.options.keep_rate": "1.5"}, ["1.5"]),
        ({"method.options.locations": "(2, 9)"}, ["9", "3"]),
        ({"data.name": "digit"}, ["digit", "digits"]),
        ({"data.train_split": "trian"}, ["trian", "train"]),
        ({"augment.kind": "shft"}, ["shft", "shift"]),
        ({"data.batch_size": "4000"}, ["4000", "160"]),
        ({"stages.dense.loss_weights.ratio": "1.0"}, ["ratio", "classification"]),
        ({"stages.dense.trainable": "['hed/.*']"}, ["hed/.*", "matches no parameter", "blocks_0"]),
        ({"init.path": "nowhere.safetensors"}, ["nowhere.safetensors"]),
        ({"init.path": "published"}, ["no published weights of model 'vit'", "--config.init.path=FILE"]),
        ({"mesh.fsdp": "3"}, ["fsdp=3", "devices"]),
    ],
)
def test_what_does_not_fit_is_said_before_training(change, words, tmp_path):
    config = tiny_config()
    with pytest.raises(SlimError) as caught:
        for field, text in change.items():
            loading.override(config, field, text)
        training.run(config, tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def test_command_line_errors(tmp_path):
    config = write_config(tmp_path)
    for arguments, word in (
        (["--config.stages.dense.epoch=3"], "did you mean 'epochs'"),
        (["--confg.seed=3"], "--confg.seed=3"),
    ):
        done = run_train(config, tmp_path / "run", *arguments)
        assert done.returncode == 2 and word in done.stderr, done.stderr
        assert "Traceback" not in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_broken_config_files(tmp_path):
    file = tmp_path / "broken.py"
    with pytest.raises(SlimError, match="no config file"):
        training.load_config(file)
    for text, words in (
        ("def get_config(:", "broken.py, line 1: SyntaxError"),
        ("x = 1", "get_config"),
        ("def get_config():\n    return nothing", "broken.py, line 2: NameError"),
        ("def get_config():\n    return 3", "returned int"),
        ("raise SystemExit('set DATA first')", "broken.py, line 1: SystemExit: set DATA first"),
    ):
        file.write_text(text)
        with pytest.raises(SlimError) as caught:
            training.load_config(file)
        assert words in str(caught.value) and "\n" not in str(caught.value)
    text = file.rename(tmp_path / "config.txt")
    with pytest.raises(SlimError, match="must be a Python file"):
        training.load_config(text)


def test_config_survives_its_workdir():
    config = shipped("digits")
    again = configs.from_dict(json.loads(json.dumps(config.to_dict())))
    assert configs.flatten(again) == configs.flatten(config)
    assert configs.differences(configs.flatten(again), configs.flatten(config)) == []


def test_a_workdir_older_than_a_field():
    """Fields that are newer than a saved config get their defaults, in the config and in its stages."""
    config = shipped("digits")
    plain = json.loads(json.dumps(config.to_dict()))
    del plain["mixup"], plain["data"]["repeats"], plain["stages"]["dense"]["accumulate"]
    names = "bias|scale|gamma|cls_token|dist_token|reg_token|pos_embed|poss|attention_biases"
    plain["stages"]["dense"]["no_decay"] = [f".*({names})"]  # what each backbone declares now
    again = configs.from_dict(plain)
    assert configs.flatten(again) == configs.flatten(config)
    plain["data"]["color"] = "red"
    with pytest.raises(SlimError, match="unknown field of config.data 'color'; .*choices: .*batch_size"):
        configs.from_dict(plain)


def test_a_run_goes_on_in_a_workdir_older_than_a_field(tmp_path):
    first = workdir.Workdir(tmp_path, tiny_config())
    first.claim()
    first.mark_done("dense", {})
    first.close()
    plain = json.loads((tmp_path / "config.json").read_text())
    del plain["stages"]["dense"]["b2"]
    (tmp_path / "config.json").write_text(json.dumps(plain))
    workdir.Workdir(tmp_path, tiny_config()).close()
    plain["stages"]["dense"]["b1"] = 0.5
    (tmp_path / "config.json").write_text(json.dumps(plain))
    with pytest.raises(SlimError, match=r"another config: stages.dense.b1: 0.5 -> 0.9$"):
        workdir.Workdir(tmp_path, tiny_config())


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "vit_small_patch14_dinov2"])
def test_published_weights_follow_the_model(name):
    config = loading.load_config("image_folder", [("model.name", name)])
    assert build.start_path(config).startswith(f"hf-hub:timm/{name}.")


def test_config_by_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # found beside the package too
    assert main(["config", "fashion_mnist_49", "data.batch_size=32"]) == 0
    said = capsys.readouterr().out
    assert "data.batch_size=32\n" in said and "stages.predictor.trainable='method'\n" in said
    assert main(["config", "fashion_mnist_94"]) == 2
    said = capsys.readouterr().err
    assert "unknown config 'fashion_mnist_94'; did you mean 'fashion_mnist_49'? choices: " in said and "digits" in said
    assert said.count("\n") == 1
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "mine.py").write_text("from slimvit_jax.training import default_config as get_config\n")
    assert loading.find_config("mine") == Path("configs/mine.py")


def test_nothing_in_the_package_imports_configs():
    for file in (ROOT / "slimvit_jax").rglob("*.py"):
        assert not re.search(r"^\s*(import|from) configs\b", file.read_text(), re.MULTILINE), file
