"""The example of docs/add_a_method.md: its code as printed, through create_model and a training step."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import slimvit_jax as slim
from slimvit_jax.errors import SlimError
from slimvit_jax.methods import METHODS
from slimvit_jax.training.step import StepOptions, make_train_step, new_state

PAGE = Path(__file__).parents[2] / "docs" / "add_a_method.md"
SMALL = dict(img_size=16, patch_size=4, embed_dim=24, depth=3, num_heads=2, num_classes=5)


@pytest.fixture()
def blocks(monkeypatch):
    """The code blocks of the page, the first run as a module and its class entered in the table of methods."""
    code = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    module = types.ModuleType("slimvit_jax.methods.gate")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # dataclasses look up the module of a class
    exec(compile(code[0], f"{PAGE.name}: the method", "exec"), module.__dict__)
    monkeypatch.setitem(METHODS, module.Gate.method, module.Gate)
    return code


def test_it_is_under_sixty_lines(blocks):
    assert len(blocks[0].splitlines()) < 60


def test_its_usage_runs_as_printed(blocks):
    exec(compile(blocks[1], f"{PAGE.name}: using it", "exec"), {})


def test_it_trains(blocks):
    model = slim.create_model("deit_distilled", method="gate", layer=1, **SMALL)
    images = jax.random.normal(jax.random.key(1), (4, 16, 16, 3))
    variables = jax.jit(model.init)(jax.random.key(0), images)
    optimizer = optax.adam(1e-3)
    step = make_train_step(
        model,
        model.losses,
        optimizer,
        lambda _: jnp.float32(1e-3),
        jax.random.key(2),
        StepOptions(loss_weights=model.loss_weights()),
    )
    state = new_state(variables, "all", optimizer, ema=False)
    batch = {"image": images, "label": jnp.arange(4), "mask": jnp.ones(4)}
    after, metrics = jax.jit(step)(state, batch)
    assert np.isfinite(metrics).all() and after.step == 1
    before = state.variables["params"]["slim"]["score"]["kernel"]
    assert not np.array_equal(before, after.variables["params"]["slim"]["score"]["kernel"])
    _, aux = model.apply(after.variables, images, return_aux=True)
    assert aux.token_counts == (16, 12, 12)


@pytest.mark.parametrize("options", [dict(keep_rate=0), dict(layer=9), dict(layers=2)])
def test_its_options_are_checked(blocks, options):
    with pytest.raises(SlimError):
        slim.create_model("vit", method="gate", **SMALL, **options)
