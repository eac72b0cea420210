"""Lives on sample images, from the weights that a study saved."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.page.cells import Study
from slimvit_jax import create_model, load
from slimvit_jax.analysis.evaluate import Inference
from slimvit_jax.analysis.pictures import picture_lives, picture_weights
from slimvit_jax.training import build
from slimvit_jax.training.config import default_config

WEIGHTS = "life.safetensors"
RATE = 0.7  # the study keeps the weights of the cell trained at it, seed 0
IMAGES = 6
GROUPS = ("data", "model", "preprocess")  # of the config
PATCHES_FROM = 300  # images whose lives the curve of mean weights is drawn from


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{"a.b": 1} -> {"a": {"b": 1}}."""
    result: dict[str, Any] = {}
    for field, value in flat.items():
        *groups, last = field.split(".")
        inner = result
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[last] = value
    return result


def data_config(flat: Mapping[str, Any]) -> Any:
    """The study's config as far as images and backbone go; flattening left out empty groups, which are defaults."""
    config = default_config()
    for group, values in nested({k: v for k, v in flat.items() if k.split(".")[0] in GROUPS}).items():
        config[group].update(values)
    return config


def samples(source: Any, count: int) -> list[Any]:
    """The first image of each of `count` classes, in the order they turn up; more of them if classes run out."""
    found: dict[int, int] = {}
    for index in range(min(len(source), 500)):
        found.setdefault(source[index]["label"], index)
        if len(found) == count:
            break
    places = sorted(found.values())
    places += [index for index in range(len(source)) if index not in places][: count - len(places)]
    return [source[index] for index in places]


def draw(study: Study, folder: Path, stem: str) -> dict[str, Path]:
    """Pictures of lives and of mean weights; {} where the study has no weights or no row about them.

    Raises:
      SlimError: the study's images are not on this machine, or the weights do not fit.
    """
    weights = study.path / WEIGHTS
    if not weights.exists():
        return {}
    config = data_config(study.facts["config"])
    source, prepare = build.build_source(config, config.data.eval_split), build.build_preprocess(config)
    trained = next((r for r in study.of("main") if (r["method"], r["train_rate"]) == ("life_regression", RATE)), None)
    if trained is None:
        return {}
    model = create_model(config.model.name, method="life_regression", **study.model_options(), **trained["options"])
    run = Inference(model, load(model, weights))
    records = samples(source, IMAGES)
    pixels = np.stack([prepare.pixels(record["image"], record["name"]) for record in records])
    outputs = run(prepare.normalise(pixels))
    names, guesses = source.class_names, np.asarray(outputs.logits).argmax(1)
    titles = [f"{names[r['label']]} → {names[guess]}" for r, guess in zip(records, guesses, strict=True)]
    many = range(min(PATCHES_FROM, len(source)))
    rest = np.stack([prepare.pixels(source[i]["image"], source[i]["name"]) for i in many])
    lives = np.asarray(run(prepare.normalise(rest)).scores)
    return {
        "lives": picture_lives(folder / f"{stem}_lives.png", model, outputs, pixels, titles),
        "weights": picture_weights(folder / f"{stem}_weights.png", model, lives),
    }
