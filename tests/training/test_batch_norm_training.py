"""Running statistics in training: those of the whole batch on any number of devices, and part of every checkpoint."""

import json
import os
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from train_tools import CACHE, ROOT, few_images, same, shipped, tiny

from slimvit_jax import convert, training
from slimvit_jax.training import build, loop

# The fixture is a minute of work: one worker does it, once.
pytestmark = pytest.mark.xdist_group("batch_norm")

SCRIPT = """
import json, sys
sys.path.insert(0, "tests")
import jax, numpy as np
from train_tools import shipped, tiny
from slimvit_jax import training
from slimvit_jax.training import build, devices
from slimvit_jax.training.optim import flat

outcome = {}
for name in sys.argv[1:]:
    config = training.validate(tiny(shipped(name)))
    stage = build.build_stage(config, config.schedule[0], 3)
    state = stage.state(*stage.fresh())
    rng = np.random.default_rng(0)
    images = rng.normal(size=(8, *stage.model.img_size, stage.model.in_chans)) * np.arange(1, 9).reshape(8, 1, 1, 1)
    batch = {"image": images.astype(np.float32), "label": rng.integers(0, 10, 8).astype(np.int32),
             "mask": np.ones(8, np.float32)}
    step = jax.jit(stage.step_function())
    one, report = step(state, batch)
    two, again = step(state, jax.device_put(batch, devices.batch_sharding(devices.make_mesh())))
    furthest = lambda a, b: max(float(abs(np.asarray(x) - np.asarray(y)).max()) for x, y in
                                zip(flat(a).values(), flat(b).values(), strict=True))
    outcome[name] = {
        "devices": jax.device_count(),
        "statistics": furthest(one.batch_stats, two.batch_stats),
        "moved": furthest(one.batch_stats, state.batch_stats),
        "report": float(abs(np.asarray(report) - np.asarray(again)).max()),
    }
print(json.dumps(outcome))
"""
NAMES = ("fashion_lvvit", "fashion_levit")


@pytest.fixture(scope="module")
def outcome():
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
    env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SCRIPT, *NAMES]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", NAMES)
def test_statistics_over_two_devices_are_those_of_the_batch(outcome, name):
    """Images differ in scale, so that statistics of half a batch would be others; MixToken pairs across devices."""
    facts = outcome[name]
    assert facts["devices"] == 2 and facts["moved"] > 0.1
    assert facts["statistics"] < 1e-4 * max(1.0, facts["moved"])
    assert facts["report"] < 1e-4  # losses and the gradient's norm; Adam's first step is about signs of rounding too


def test_statistics_are_in_checkpoints_and_weights(tmp_path, monkeypatch):
    """A run that was stopped after two of four steps ends as one that was not."""
    config = few_images(tiny(shipped("fashion_levit"), steps=4))
    config.log.tensorboard, config.cache_dir = False, CACHE
    straight = training.run(config, tmp_path / "straight")
    steps = loop.StageProgress.update

    def interrupt(self, done, numbers=None):
        steps(self, done, numbers)
        if done == 2 and numbers is None:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(loop.StageProgress, "update", interrupt)
        with pytest.raises(loop.Stopped):
            training.run(config, tmp_path / "stopped")
    again = training.run(config, tmp_path / "stopped")
    assert same(straight.variables["scratch"], again.variables["scratch"])
    fresh = build.init_variables(straight.model, config.seed)["batch_stats"]
    trained = straight.variables["scratch"]["batch_stats"]
    moved = jax.tree.map(lambda a, b: bool(np.abs(np.asarray(a) - b).max() > 0), fresh, trained)
    assert all(jax.tree.leaves(moved))
    loaded = convert.load(straight.model, tmp_path / "straight" / "weights" / "scratch.safetensors")
    assert same(loaded["batch_stats"], trained)
