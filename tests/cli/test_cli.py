"""The commands, on a tiny model: what they print and write, and one line for every kind of bad input."""

import json

import jax
import jax.export
import numpy as np
import pytest
from PIL import Image

import slimvit_jax as slim
from slimvit_jax.__main__ import COMMANDS, main
from slimvit_jax.convert import save
from slimvit_jax.inference import memory

OPTIONS = dict(img_size=8, patch_size=2, in_chans=1, embed_dim=24, depth=3, num_heads=2, num_classes=10)
SET = [f"--set={key}={value}" for key, value in OPTIONS.items()]
LIFE = ["--method=life_regression", "--set=locations=(1, 2)"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """tiny.safetensors, two images, and a file that is neither."""
    folder = tmp_path_factory.mktemp("cli")
    model = slim.create_model("vit", method="life_regression", locations=(1, 2), **OPTIONS)
    variables = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 8, 8, 1), np.float32))
    save(model, variables, folder / "tiny.safetensors")
    whole = (folder / "tiny.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    (folder / "sub").mkdir()
    for name in ("a.png", "sub/a.png"):
        pixels = np.random.default_rng(len(name)).integers(0, 256, (12, 10), np.uint8)
        Image.fromarray(pixels).save(folder / name)
    (folder / "text.png").write_text("no image")
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:70])
    return folder


@pytest.fixture
def model(folder):
    return ["--model=vit", f"--weights={folder / 'tiny.safetensors'}", *SET, *LIFE]


def test_every_command_has_help(capsys):
    for command in COMMANDS:
        assert main([command, "--help"]) == 0
        assert f"slimvit {command}" in capsys.readouterr().out
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(command in out for command in COMMANDS)


def test_models_by_pattern(capsys):
    assert main(["models", "deit_*tiny*_224", "--json"]) == 0
    names = [row["model"] for row in json.loads(capsys.readouterr().out)]
    assert names == ["deit_tiny_distilled_patch16_224", "deit_tiny_patch16_224"]


def test_merging_methods_are_drawn(folder, model, capsys):
    arguments = [a for a in model if not a.startswith(("--method", "--set=locations"))]
    out = folder / "merged"
    words = ["visualize", str(folder / "a.png"), *arguments, "--method=tome", "--set=r=2", "--ignore=life_predictor"]
    assert main([*words, f"--out={out}"]) == 0, capsys.readouterr().err
    assert [p.name for p in out.iterdir()] == ["groups.png"]


def test_names_are_data(folder, model, capsys):
    """Markup of rich, mathematics of matplotlib, bytes that are no UTF-8: shown as they are, nothing fatal."""
    names = ["a$_{b$", "[bold]x[/b]", ":cat:", "two\\nlines"] + [f"c{i}" for i in range(6)]
    (folder / "odd.txt").write_text("\n".join(names))
    image = folder / "photo [copy] $x$.png"
    image.write_bytes((folder / "a.png").read_bytes())
    words = [str(image), *model, f"--classes={folder / 'odd.txt'}", f"--out={folder / 'odd'}", "--top=10"]
    assert main(["predict", *words]) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    assert "photo [copy] $x$.png" in out and all(name in out for name in names)


def test_models_lists_facts(capsys):
    assert main(["models", "deit_small_patch16_224", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["parameters"] == 22_050_664 and round(row["flops"] / 1e9, 1) == 4.6
    arguments = ["models", "deit_small_patch16_224", "--json", "--method=life_regression", "--keep-rate=0.7"]
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out)[0]["token_counts"][-1] == 68
    assert main(["models", "deit_tiny"]) == 0
    assert "5.72 M" in capsys.readouterr().out


def test_predict_prints_classes_and_writes_lives(folder, model, capsys):
    names = folder / "names.txt"
    names.write_text("\n".join(f"digit {i}" for i in range(10)))
    out = folder / "out"
    files = [str(folder / "a.png"), str(folder / "sub" / "a.png")]
    assert main(["predict", *files, *model, "--top=3", f"--classes={names}", f"--out={out}", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [len(row["top"]) for row in rows] == [3, 3]
    assert rows[0]["top"][0]["name"].startswith("digit ")
    assert rows[0]["top"][0]["probability"] >= rows[0]["top"][1]["probability"]
    assert sorted(p.name for p in out.iterdir()) == ["a.png", "a_2.png"]
    assert main(["predict", files[0], *model, "--no-pictures"]) == 0
    assert "%" in capsys.readouterr().out


def test_evaluate_several_keep_rates(model, capsys):
    assert main(["evaluate", *model, "--data=digits", "--keep-rates=1,0.5", "--limit=50", "--json"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert [row["count"] for row in results] == [50, 50]
    assert [row["token_counts"] for row in results] == [[16, 16, 16], [16, 8, 4]]


def test_visualize_writes_pictures(folder, model, capsys):
    out = folder / "pictures"
    assert main(["visualize", str(folder / "a.png"), *model, f"--out={out}", "--format=svg"]) == 0
    assert sorted(p.name for p in out.iterdir()) == ["lives.svg", "weights.svg"]


def test_benchmark_compares_with_dense(capsys):
    arguments = ["benchmark", "--model=vit", *SET, *LIFE, "--keep-rates=0.5", "--batch-size=4", "--rounds=2", "--json"]
    assert main(arguments) == 0
    dense, slimmed = json.loads(capsys.readouterr().out)["results"]
    assert dense["speed_ratio"] == dense["quotient"] == 1
    assert slimmed["flops"] < dense["flops"] and slimmed["images_per_second"] > 0


def test_export_runs_without_the_library(folder, model, capsys):
    file = folder / "model.stablehlo"
    assert main(["export", str(file), *model]) == 0
    assert "float32[batch,8,8,1]" in capsys.readouterr().out
    exported = jax.export.deserialize(bytearray(file.read_bytes()))
    loaded = slim.create_model("vit", method="life_regression", locations=(1, 2), **OPTIONS)
    variables = slim.load(loaded, folder / "tiny.safetensors")
    images = np.random.default_rng(0).standard_normal((3, 8, 8, 1), np.float32)
    assert np.allclose(exported.call(images), loaded.apply(variables, images), atol=1e-5)


BAD = {
    "no command": ([], "COMMAND"),
    "unknown command": (["modelz"], "invalid choice: 'modelz'"),
    "unknown model": (["models", "resnet"], "unknown model 'resnet'"),
    "model missing": (["evaluate", "--data=digits"], "--model NAME is missing"),
    "weights missing": (["evaluate", "--model=vit", "--data=digits"], "--weights FILE is missing"),
    "no such weights": (["predict", "{f}/a.png", "--model=vit", "--weights={f}/none.npz"], "none.npz"),
    "cut weights": (
        ["predict", "{f}/a.png", "--weights={f}/cut.safetensors", "--model=vit", *SET, *LIFE],
        "cut.safetensors",
    ),
    "foreign weights": (
        ["predict", "{f}/a.png", "--weights={f}/tiny.safetensors", "--model=deit_tiny_patch16_224"],
        "shape",
    ),
    "unknown method": (["benchmark", "--model=vit", "--method=lifes"], "unknown method 'lifes'"),
    "unknown option": (["benchmark", "--model=vit", "--set=depht=3"], "'depht'; did you mean 'depth'"),
    "no option": (["benchmark", "--model=vit", "--set=depth"], "KEY=VALUE"),
    "keep rate 0": (["evaluate", "{m}", "--keep-rate=0", "--data=digits"], "(0, 1]"),
    "keep rate 1.1": (["evaluate", "{m}", "--keep-rates=0.5,1.1", "--data=digits"], "(0, 1]"),
    "keep rate word": (["evaluate", "{m}", "--keep-rate=half", "--data=digits"], "'half'"),
    "keep rate, dense": (
        ["evaluate", "--model=vit", "--weights=x.npz", "--keep-rate=0.5"],
        "--keep-rate 0.5 needs --method",
    ),
    "two keep rates": (["evaluate", "{m}", "--keep-rate=0.5", "--keep-rates=0.5"], "--keep-rates"),
    "locations": (["benchmark", "--model=vit", *SET, "--set=locations=(2, 9)"], "1..3"),
    "size": (["benchmark", "--model=vit", "--set=img_size=30"], "not divisible"),
    "no data": (["evaluate", "{m}"], "--data NAME is missing"),
    "unknown data": (["evaluate", "{m}", "--data=cats"], "'cats'"),
    "batch size": (["evaluate", "{m}", "--data=digits", "--batch-size=0"], "'0'"),
    "batch beyond memory": (["benchmark", "--model=vit", *SET, *LIFE, "--batch-size=100000000"], "GiB are free; about"),
    "no value": (["visualize", "{m}", "--out="], "--out= has no value"),
    "no image": (["predict", "{f}/none.png", "{m}"], "none.png"),
    "folder as image": (["predict", "{f}", "{m}"], "is a folder"),
    "text as image": (["predict", "{f}/text.png", "{m}"], "text.png"),
    "cut image": (["predict", "{f}/cut.png", "{m}"], "cut.png"),
    "class names": (["predict", "{f}/a.png", "{m}", "--classes={f}/text.png"], "10 classes"),
    "mean": (["predict", "{f}/a.png", "{m}", "--mean=0.5,0.5"], "mean has 2 values"),
    "out is a file": (["predict", "{f}/a.png", "{m}", "--out={f}/text.png"], "cannot make the folder"),
    "no run": (["evaluate", "--workdir={f}"], "config.json"),
    "run and model": (["evaluate", "--workdir={f}", "--model=vit"], "leave out --model"),
    "weights of another model": (
        ["evaluate", "--model=vit_small_patch16_224", "--weights=hf-hub:timm/deit_small_patch16_224.fb_in1k"],
        "are weights of 'deit_small_patch16_224', not of the model 'vit_small_patch16_224'",
    ),
    "stage alone": (["evaluate", "{m}", "--stage=dense", "--data=digits"], "--workdir"),
    "dense picture": (["visualize", "--model=vit", *SET, "--weights={f}/tiny.safetensors"], "drops nothing"),
    "picture format": (["visualize", "{m}", "--format=docx"], "'docx'"),
    "export nothing": (["export", "", "{m}"], "'' names no file"),
    "export onto a folder": (["export", "{f}/sub", "{m}"], "is a folder, not a file to write"),
    "export onto the weights": (["export", "{f}/tiny.safetensors", "{m}"], "would be written over"),
    "export its text onto itself": (["export", "{f}/x.stablehlo", "{m}", "--mlir={f}/sub/../x.stablehlo"], "--mlir"),
    "export kind": (["export", "{f}/x.tflite", "{m}"], "'.tflite'; choices: .onnx, .stablehlo"),
    "export output": (["export", "{f}/x.stablehlo", "{m}", "--outputs=logit"], "did you mean 'logits'?"),
    "export both": (["export", "{f}/x.stablehlo", "{m}", "--outputs=logits,features"], "logits or features, not both"),
    "export no classes": (["export", "{f}/x.stablehlo", "{m}", "--set=num_classes=0"], "ask for the output 'features'"),
    "export class names": (["export", "{f}/x.onnx", "{m}", "--classes={f}/text.png"], "10 classes"),
    "a picture onto its image": (["predict", "{f}/a.png", "{m}", "--out={f}"], "would be written over"),
    "set a name": (["benchmark", "--model=vit", "--set=name=x"], "--model"),
    "left-over words": (["models", "deit", "--config.seed=1"], "unrecognized arguments: --config.seed=1"),
    "export folder": (["export", "{f}/none/x.stablehlo", "{m}"], "no folder"),
    "export batch": (["export", "{f}/x.stablehlo", "{m}", "--batch-size=few"], "'few'"),
    "export platform": (["export", "{f}/x.stablehlo", "{m}", "--platforms=abacus"], "'abacus'"),
    "config": (["config", "{f}/none.py"], "none.py"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_status_2(case, folder, model, capsys):
    arguments, words = BAD[case]
    filled = [part for a in arguments for part in (model if a == "{m}" else [a.replace("{f}", str(folder))])]
    assert main(filled) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and words in printed.err, printed.err


def test_a_batch_beyond_memory_is_refused_before_it_is_made(model, capsys, monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 1e5)
    assert main(["evaluate", *model, "--data=digits", "--batch-size=50"]) == 2
    assert "batch size 50 takes 0.0 GiB of memory, and 0.0 GiB are free" in capsys.readouterr().err


def test_failed_commands_leave_no_file(folder, model):
    assert main(["export", str(folder / "left.stablehlo"), *model, "--set=num_classes=3"]) == 2
    assert not list(folder.glob("*left*")) and not list(folder.glob(".left*"))
