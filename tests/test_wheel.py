"""The wheel, installed alone: it trains in an empty folder."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import zipfile

import pytest
from train_tools import CACHE, ROOT


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the wheel's content, beside an empty one to work in; and the environment to use it."""
    if int(importlib.metadata.version("setuptools").split(".")[0]) < 77:
        pytest.skip("pyproject.toml asks for setuptools 77")
    tree, folder, empty = (tmp_path_factory.mktemp(name) for name in ("tree", "wheel", "empty"))
    for name in ("slimvit_jax", "configs"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for file in (*ROOT.glob("*.toml"), *ROOT.glob("requirements*.txt"), *(ROOT / n for n in ("setup.py", "README.md"))):
        shutil.copy(file, tree)
    shutil.copy(ROOT / "LICENSE", tree)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    subprocess.run([*build, str(tree)], check=True, cwd=empty)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return empty, {**os.environ, "PYTHONPATH": str(folder), "SLIMVIT_HUGE_PAGES": "0"}


def run(installed, *words):
    folder, environment = installed
    command = [sys.executable, "-m", "slimvit_jax", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def test_configs_and_models_are_there(installed):
    assert os.path.isfile(os.path.join(installed[1]["PYTHONPATH"], "slimvit_jax", "serve", "page.html"))
    shown = run(installed, "config", "image_folder")
    assert shown.returncode == 0 and "data.name='folder'" in shown.stdout, shown.stderr
    assert "init.path='published'" in shown.stdout
    wrong = run(installed, "config", "digit")
    assert wrong.returncode == 2 and "did you mean 'digits'" in wrong.stderr


def test_it_trains_in_an_empty_folder(installed):
    steps = [f"--config.stages.{stage}.steps=1" for stage in ("dense", "predictor", "backbone")]
    small = [
        "--config.model.options.depth=2",
        "--config.method.options.locations=(1,)",
        "--config.report.enabled=False",
    ]
    done = run(installed, "train", "--config=digits", "--workdir=W", *steps, *small, f"--config.cache_dir={CACHE}")
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in (installed[0] / "W" / "weights").iterdir()) == [
        "backbone.safetensors", "dense.safetensors", "predictor.safetensors",
    ]  # fmt: skip
