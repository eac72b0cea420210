"""`slim.from_pretrained`: folders of timm's and transformers' form, the hub, files and runs."""

import json
import logging

import jax
import numpy as np
import pytest
import safetensors.numpy
from golden import HERE
from state_dicts import of_transformers
from test_runs import run_of

import slimvit_jax as slim
from slimvit_jax.errors import SlimError
from slimvit_jax.training.build import init_variables

ARGS = {"patch_size": 4, "embed_dim": 16, "depth": 3, "num_heads": 2}
TIMM = {
    "architecture": "vit_tiny_patch16_224.some_tag",
    "num_classes": 3,
    "label_names": ["n1", "n2", "n3"],
    "label_descriptions": {"n1": "tench", "n3": "a$_{b$"},
    "model_args": ARGS,
    "pretrained_cfg": {"input_size": [3, 16, 16], "mean": [0.4, 0.4, 0.4], "std": [0.2, 0.2, 0.2], "crop_pct": 0.8,
                       "interpolation": "bilinear"},
}  # fmt: skip


def same(first, second):
    return jax.tree.all(jax.tree.map(np.array_equal, first, second))


@pytest.fixture
def folder(tmp_path):
    """A small ViT as timm stores one, and its variables."""
    (tmp_path / "config.json").write_text(json.dumps(TIMM))
    model = slim.create_model("vit", img_size=16, num_classes=3, **ARGS)
    variables = init_variables(model, 3)
    slim.save(model, variables, tmp_path / "model.safetensors")
    return tmp_path, variables


def test_a_folder_says_what_the_model_is(folder, caplog):
    path, weights = folder
    model, variables = slim.from_pretrained(path)
    assert same(variables, weights) and model.class_names == ("tench", "n2", "a$_{b$") and not caplog.records
    transform = slim.transform_for(model)
    assert transform(np.full((40, 30, 3), 102, np.uint8)).shape == (16, 16, 3)
    assert (transform.mean, transform.crop_pct, transform.interpolation) == ((0.4, 0.4, 0.4), 0.8, "bilinear")


def test_fresh_parameters_are_seeded_and_said_once(folder, caplog):
    path, weights = folder
    options = dict(method="life_regression", locations=(1, 2), keep_rate=0.5)
    with caplog.at_level(logging.INFO):
        model, variables = slim.from_pretrained(path, **options)
    assert [record.message.count("life_predictor") for record in caplog.records] == [1]
    own = variables["params"].pop("slim")
    assert same(variables, weights) and model.slim.plan.token_counts == (16, 8, 4)
    again, other = (slim.from_pretrained(path, seed=seed, **options)[1]["params"]["slim"] for seed in (0, 1))
    assert same(own, again) and not same(own, other)


@pytest.mark.parametrize("number", [5, 0])
def test_another_number_of_classes_is_a_fresh_head_or_none(number, folder):
    path, weights = folder
    model, variables = slim.from_pretrained(path, num_classes=number)
    assert model.num_classes == number and model.class_names == ()
    head = variables["params"].pop("head", None)
    assert (head is None) == (number == 0) and (head is None or head["kernel"].shape == (16, number))
    assert same(variables["params"], {name: tree for name, tree in weights["params"].items() if name != "head"})


def test_the_hub_is_asked_once(folder, monkeypatch):
    path, weights = folder
    asked = []

    def download(repo, name, local_files_only=False):
        if local_files_only and name not in [known for _, known in asked]:
            raise OSError("not in the cache")
        if not local_files_only:
            asked.append((repo, name))
        return str(path / name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr("urllib.request.getproxies", lambda: {"https": "proxy"})
    for _ in range(2):
        assert same(slim.from_pretrained("hf-hub:somebody/small")[1], weights)
    assert asked == [("somebody/small", "config.json"), ("somebody/small", "model.safetensors")]


def test_a_folder_of_transformers(folder, tmp_path):
    path, weights = folder
    model, _ = slim.from_pretrained(path)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    from safetensors.numpy import save_file

    save_file(of_transformers(slim.to_torch(model, weights), 0), theirs / "model.safetensors")
    config = {"model_type": "vit", "architectures": ["ViTForImageClassification"], "image_size": 16, "patch_size": 4,
              "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64,
              "layer_norm_eps": 1e-12, "id2label": {"0": "a", "1": "b", "2": "c"}}  # fmt: skip
    (theirs / "config.json").write_text(json.dumps(config))
    images = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2, "size": {"height": 16, "width": 16}}
    (theirs / "preprocessor_config.json").write_text(json.dumps(images))
    model, variables = slim.from_pretrained(theirs)
    assert same(variables, weights) and model.class_names == ("a", "b", "c")
    transform = slim.transform_for(model)
    assert (transform.crop_mode, transform.crop_pct, transform.interpolation) == ("squash", 1.0, "bilinear")


def test_a_weights_file_needs_a_name(folder):
    path, weights = folder
    file = path / "model.safetensors"
    sizes = dict(img_size=16, num_classes=3, **ARGS)
    assert same(slim.from_pretrained(file, model="vit", **sizes)[1], weights)
    with pytest.raises(SlimError, match=r"give model=NAME.*embed_dim 16, depth 3"):
        slim.from_pretrained(file)


def test_a_run(tmp_path):
    run, weights = run_of(tmp_path, "topk", {"locations": (1, 2)})
    model, variables = slim.from_pretrained(tmp_path)
    assert model.slim.method == "topk" and same(variables, weights["tuned"])
    model, variables = slim.from_pretrained(tmp_path, "life_regression", num_classes=4)
    assert model.num_classes == 4 and model.slim.locations == (1, 2) and "slim" in variables["params"]


BAD = {
    "architecture": ({**TIMM, "architecture": "vit_tini_patch16_224"}, "did you mean 'vit_tiny_patch16_224'"),
    "kind": ({"model_type": "swin"}, "model_type 'swin'"),
    "neither": ({"name": "x"}, "neither 'architecture'"),
    "field": ({"model_type": "vit"}, "lacks 'hidden_size'"),
    "list": ([], "no group of fields"),
    "no text": ({"architecture": None}, "config.json does not say which model this is"),
    "no sizes": ({**TIMM, "pretrained_cfg": {"input_size": []}}, "config.json does not say which model this is"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_says_nothing_known_is_one_line(case, tmp_path):
    config, words = BAD[case]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(SlimError, match=words) as error:
        slim.from_pretrained(tmp_path)
    assert "\n" not in str(error.value) and "config.json" in str(error.value)


def test_nothing_there(tmp_path):
    for source in ("", str(tmp_path / "none"), "hf-hub:x"):
        with pytest.raises(SlimError, match="is not there|expected hf-hub"):
            slim.from_pretrained(source)


@pytest.mark.parametrize("case", ["dinov2", "dinov2_registers"])
def test_positions_are_resampled_as_transformers_does_it(tmp_path, case):
    """One of them antialiases, the other does not: features of a larger picture as transformers computed them."""
    arrays = np.load(HERE / f"transformers_{case}.npz", allow_pickle=False)
    state = {name[3:]: arrays[name] for name in arrays.files if name.startswith("sd/")}
    safetensors.numpy.save_file(state, tmp_path / "model.safetensors")
    config = {"model_type": case.replace("_", "_with_"), "image_size": 28, "patch_size": 7}
    config |= {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "mlp_ratio": 4}
    config |= {"layer_norm_eps": 1e-6, "layerscale_value": 1.0, "num_register_tokens": 2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model, variables = slim.from_pretrained(tmp_path, img_size=(56, 42), resample_pos_embed=True)
    _, aux = model.apply(variables, arrays["images"].transpose(0, 2, 3, 1), return_aux=True)
    np.testing.assert_allclose(aux.features, arrays["want"], rtol=0, atol=1e-5)
