"""Configs that train in seconds, and train.py as another process."""

from __future__ import annotations

import copy
import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from slimvit_jax import training
from slimvit_jax.backbones import FAMILIES
from slimvit_jax.methods import METHODS
from slimvit_jax.models import NAMED
from slimvit_jax.training.optim import flat

ROOT = Path(__file__).parent.parent
CACHE = "/tmp/slimvit_jax_test_cache"


def shipped(name: str) -> Any:
    """configs/NAME.py."""
    return training.load_config(ROOT / "configs" / f"{name}.py")


def recipe(method: str) -> Any:
    """The small config of a method; for one that has none, top-k's with the method's defaults."""
    name = "fashion_mnist_49" if method == "life_regression" else f"fashion_{method}"
    if (ROOT / "configs" / f"{name}.py").exists():
        return shipped(name)
    config = shipped("fashion_topk")
    config.method.name, config.method.options = method, {}
    return config


def tiny(config: Any, steps: int = 2) -> Any:
    """A copy that runs in seconds on the embedded digits: 3 layers, 16 tokens, `steps` steps a stage.

    Everything else (method, augmentation, stages, optimiser) stays what the config says. A labeller becomes a tiny ViT
    without weights: the steps can be traced, but not run.
    """
    config = copy.deepcopy(config)
    options = _tiny_model(config.model.name, config.model.options.to_dict())
    config.model.options = options
    if config.labeller.name:
        labeller = {"patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 1}
        config.labeller.update(name="vit", options=labeller, path="", load={})
    method = config.method.options.to_dict()
    for of_other_layers in ("budgets", "preset", "prune_kept_num", "merge_kept_num"):
        method.pop(of_other_layers, None)
    fields = {field.name for field in dataclasses.fields(METHODS[config.method.name])} if config.method.name else set()
    method.pop("stage_blocks", None)
    if "locations" in fields:  # some methods need a layer before their first location
        method["locations"] = (1, 2) if "locations" in method else (2, 3)
    if "r" in method:
        method["r"] = 2
    if "consistency_r" in method:
        method["consistency_r"] = (0, 1)
    config.method.options = method
    config.init.path = ""
    config.init.options = {}
    config.data.update(name="digits", train_split="train", eval_split="test", batch_size=16, num_workers=0, options={})
    config.data.data_dir = ""
    config.eval.update(batch_size=120, every_epochs=0.0)
    config.report.enabled = False
    config.log.every_steps = 1
    config.mesh.cpu_devices = 0
    for name in config.schedule:
        config.stages[name].steps = steps
    return config


def few_images(config: Any) -> Any:
    """The same config on 160 digits and 120 held out: every start of a run decodes all there are."""
    config.data.update(train_split="train[:160]", eval_split="test[:120]")
    return config


def _tiny_model(name: str, options: dict[str, Any]) -> dict[str, Any]:
    cls, _ = FAMILIES[NAMED[name].family if name in NAMED else name]
    small = cls.tiny()
    if options.get("p_emb") == "none":
        small |= {"img_size": 16, "patch_size": 4}
    return {key: value for key, value in options.items() if not isinstance(value, tuple)} | small  # one for each layer


def batch_of(rows: int = 16, seed: int = 0) -> dict[str, Any]:
    """A training batch of noise for `tiny_config`."""
    random = np.random.default_rng(seed)
    return {
        "image": jnp.asarray(random.standard_normal((rows, 16, 16, 1), np.float32)),
        "label": jnp.asarray(random.integers(0, 10, rows), jnp.int32),
        "mask": jnp.ones(rows),
    }


def tiny_config(steps: int = 4) -> Any:
    """Dense, predictor, backbone, of `steps` steps each."""
    config = few_images(tiny(shipped("fashion_mnist_49"), steps))
    config.name = "run"
    config.model.options.mlp_ratio = 2.0
    config.augment.hflip = 0.0
    config.checkpoint.every_steps = 2
    config.log.tensorboard = False
    config.cache_dir = CACHE
    return config


CONFIG_FILE = """
import sys
sys.path.insert(0, {tests!r})
from train_tools import tiny_config

def get_config():
    return tiny_config({steps})
"""


def write_config(folder: Path, steps: int = 4) -> Path:
    """The tiny config as a file."""
    file = folder / "tiny_config.py"
    file.write_text(CONFIG_FILE.format(tests=str(ROOT / "tests"), steps=steps))
    return file


def command(config: Path, workdir: Path, *more: str) -> list[str]:
    return [sys.executable, str(ROOT / "train.py"), f"--config={config}", f"--workdir={workdir}", *more]


def run_train(config: Path, workdir: Path, *more: str, env: dict[str, str] | None = None):
    """train.py, run to its end."""
    return subprocess.run(
        command(config, workdir, *more), capture_output=True, text=True, env={**os.environ, **(env or {})}, timeout=300
    )


def same(first, second) -> bool:
    """Bit-identical trees."""
    a, b = flat(first), flat(second)
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)
