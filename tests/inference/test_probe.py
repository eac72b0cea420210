"""Models without a classifier: k nearest neighbours, a linear probe, and features in a file."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
from PIL import Image

import slimvit_jax as slim
from slimvit_jax.__main__ import main
from slimvit_jax.errors import SlimError
from slimvit_jax.inference.probe import probe

OPTIONS = dict(img_size=8, patch_size=4, in_chans=1, embed_dim=16, depth=2, num_heads=2, num_classes=0)
MODEL = ["--model=vit", *(f"--set={key}={value}" for key, value in OPTIONS.items())]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("probe") / "features.safetensors"
    model = slim.create_model("vit", **OPTIONS)
    slim.save(model, model.init(jax.random.key(0), np.zeros((1, 8, 8, 1), np.float32)), path)
    return f"--weights={path}"


def test_probe_tells_what_can_be_told():
    """Directions that scale: cosine finds them. Two clouds on a line: the linear probe finds those too."""
    random = np.random.default_rng(0)
    labels = np.arange(60) % 3
    directions = np.eye(8, dtype=np.float32)[labels] * random.uniform(0.5, 20, (60, 1)).astype(np.float32)
    apart = (directions + random.normal(0, 0.01, directions.shape), labels)
    result = probe(apart, apart)
    assert (result.knn, result.linear, result.trained_on, result.count) == (1.0, 1.0, 60, 60)
    noise = (random.normal(0, 1, (60, 8)), random.permutation(labels))
    assert probe(noise, (random.normal(0, 1, (300, 8)), np.arange(300) % 3)).linear < 0.5
    with pytest.raises(SlimError, match="neighbours=61 .* the 60 training images"):
        probe(apart, apart, 61)
    with pytest.raises(SlimError, match="all of one class"):
        probe((directions, np.zeros(60, int)), apart)


def test_evaluate_probes_a_model_without_a_classifier(weights, capsys):
    arguments = ["evaluate", *MODEL, weights, "--data=digits", "--split=test", "--limit=200", "--json"]
    assert main([*arguments, "--train-split=train[:300]", "--neighbours=3"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["results"]
    assert (row["neighbours"], row["trained_on"], row["count"]) == (3, 200, 200)
    assert 0.3 < row["linear"] <= 1 and 0.3 < row["knn"] <= 1  # even random features of digits are no chance
    assert main(["evaluate", *MODEL, weights, "--data=digits", "--train-split=dev"]) == 2
    assert "unknown split of digits 'dev'" in capsys.readouterr().err


def test_predict_writes_features(weights, tmp_path, capsys):
    for name in ("a.png", "b.png"):
        Image.effect_noise((12, 12), 50).save(tmp_path / name)
    files = [str(tmp_path / name) for name in ("a.png", "b.png")]
    out = tmp_path / "out"
    assert main(["predict", *files, *MODEL, weights, f"--out={out}", "--no-pictures", "--json"]) == 0
    path = str(out / "features.npz")
    assert json.loads(capsys.readouterr().out) == [{"image": file, "features": path} for file in files]
    with np.load(out / "features.npz") as stored:
        assert stored["images"].tolist() == files and stored["features"].shape == (2, 16)
    model = slim.create_model("vit", **OPTIONS)
    variables = slim.load(model, weights.partition("=")[2])
    expected = model.apply(variables, np.stack([slim.transform_for(model)(file) for file in files]))
    with np.load(out / "features.npz") as stored:
        np.testing.assert_allclose(stored["features"], expected, atol=1e-5)
