"""A config that trains in seconds, and train.py as another process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from slimvit_jax.training import recipes
from slimvit_jax.training.optim import flat

ROOT = Path(__file__).parent.parent
CACHE = "/tmp/slimvit_jax_test_cache"


def tiny_config(steps: int = 4, **model_options):
    """Dense, predictor, backbone, of `steps` steps each."""
    options = {"img_size": 16, "patch_size": 4, "in_chans": 1, "num_heads": 2, "mlp_ratio": 2.0, **model_options}
    config = recipes.tiny(recipes.life_from_scratch(**options), steps)
    config.augment.update(kind="shift", shift=0.1)
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
