"""Every method in training on several devices: a step over two is the step of one, and none visits the host."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import slimvit_jax as slim

# The fixture is a minute of work: one worker does it, once.
pytestmark = pytest.mark.xdist_group("methods_devices")

ROOT = Path(__file__).parents[2]
SCRIPT = """
import json, sys
sys.path.insert(0, "tests")
import dataclasses, jax, numpy as np, optax
from golden import random_variables
from train_tools import recipe, tiny
from slimvit_jax import training
from slimvit_jax.training import build, devices
from slimvit_jax.training.optim import flat

mesh = devices.make_mesh()
outcome = {}
for method in sys.argv[1:]:
    config = training.validate(tiny(recipe(method)))
    stage = build.build_stage(config, config.schedule[-1], 3)
    stage = dataclasses.replace(stage, optimizer=optax.sgd(1.0))  # what changes is the gradient
    state = stage.state(random_variables(stage.model), stage.teacher and random_variables(stage.teacher))
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.normal(size=(8, *stage.model.img_size, stage.model.in_chans)).astype(np.float32),
        "label": rng.integers(0, 10, 8).astype(np.int32),
        "mask": np.ones(8, np.float32),
    }
    step = jax.jit(stage.step_function())
    one, report = step(state, batch)
    spread = jax.device_put(batch, devices.batch_sharding(mesh))
    compiled = step.lower(state, spread).compile()
    two, again = compiled(state, spread)
    text = compiled.as_text()
    moved = {k: float(abs(np.asarray(a) - np.asarray(b)).max()) for (k, a), b in
             zip(flat(one.params).items(), flat(two.params).values(), strict=True)}
    changed = max(float(abs(np.asarray(a) - np.asarray(b)).max()) for a, b in
                  zip(flat(one.params).values(), flat(state.params).values(), strict=True))
    outcome[method] = {
        "devices": jax.device_count(),
        "report": float(abs(np.asarray(report) - np.asarray(again)).max()),
        "params": max(moved.values()),
        "changed": changed,
        "host": [word for word in ("infeed", "outfeed", "callback", " send(", " recv(") if word in text],
    }
print(json.dumps(outcome))
"""


@pytest.fixture(scope="module")
def outcome():
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *slim.list_methods()],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("method", slim.list_methods())
def test_a_step_on_two_devices_is_the_step_of_one(outcome, method):
    facts = outcome[method]
    assert facts["devices"] == 2 and facts["changed"] > 1e-6
    assert facts["report"] < 1e-4 and facts["params"] < 1e-4 * facts["changed"]


@pytest.mark.parametrize("method", slim.list_methods())
def test_a_compiled_step_never_visits_the_host(outcome, method):
    assert outcome[method]["host"] == []
