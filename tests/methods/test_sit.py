"""SiT: names, algebra by hand, teachers, learning rates, two heads."""

from __future__ import annotations

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import Golden, close, run, small

import slimvit_jax as slim
from slimvit_jax import losses as loss_functions
from slimvit_jax.convert import rules
from slimvit_jax.errors import SlimError
from slimvit_jax.methods import sit
from slimvit_jax.plan import Geometry
from slimvit_jax.training import optim

TINY = dict(img_size=16, patch_size=4, embed_dim=24, depth=3, num_heads=2, num_classes=5)  # 16 patches
built = functools.partial(small, **TINY)
IMAGES = jax.random.normal(jax.random.key(7), (3, 16, 16, 3))
LABELS = jax.nn.one_hot(jnp.array([1, 2, 3]), 5)
KEY = {"dropout": jax.random.key(3)}


def test_sit_names_are_the_releases():
    """Names and shapes of the modules; test_lvvit.py checks the numbers, on the release's backbone."""
    state = Golden.load("sit").state()
    options = dict(img_size=28, patch_size=4, embed_dim=48, depth=8, num_heads=3, stage_blocks=(3, 2, 2, 1))
    expected = rules.expected(slim.create_model("vit", method="sit", **options))
    modules = ("tsm.", "rtsm.")
    assert {name: leaf.torch_shape for name, leaf in expected.items() if name.startswith(modules)} == {
        name: value.shape for name, value in state.items() if name.startswith(modules)
    }


def test_sit_algebra_by_hand():
    patches = jnp.array([[[1.0, 2.0], [3.0, 4.0]]])
    np.testing.assert_allclose(sit.aggregate(jnp.array([[[0.25], [0.75]]]), patches), [[[2.5, 3.5]]])
    close(sit.token_recovery([patches, patches], [patches + 2, patches]), np.array(2.0), 1e-6)


def test_a_teacher_of_another_depth_is_refused():
    student, variables = built(method="sit", locations=(1, 2))
    with pytest.raises(SlimError, match="depth"):
        student.slim.check_teacher(Geometry(grid=(4, 4), depth=4, dim=24, heads=2))
    student.slim.check_teacher(Geometry(grid=(4, 4), depth=3, dim=24, heads=6))
    aux = jax.eval_shape(lambda: student.apply(variables, IMAGES, train=True, return_aux=True, rngs=KEY))[1]
    tokens = tuple(jnp.zeros((3, 16, 24)) for _ in range(4))
    teacher = slim.Aux((16,) * 4, None, None, IMAGES, {"tokens": tokens})
    with pytest.raises(SlimError, match="4 layers"):
        student.losses(LABELS, aux, slim.Targets(LABELS, teacher=(LABELS, teacher)))
    with pytest.raises(SlimError, match="record_tokens"):
        student.losses(LABELS, aux, slim.Targets(LABELS, teacher=(LABELS, teacher.replace(taps={}))))


def test_sit_recovery_learns_faster():
    model, variables = built(method="sit", locations=(1, 2))
    rate = SimpleNamespace(backbone=1e-3, method=0.0)
    stage = SimpleNamespace(lr=rate, layer_decay=1.0, lr_scale=())
    factors = optim.flat(optim.multipliers(variables["params"], stage, model))
    assert {path.split("/")[1] for path, factor in factors.items() if factor == 5.0} == {"rtsm_0", "rtsm_1", "rtsm_2"}
    assert set(factors.values()) == {1.0, 5.0}
    stage.lr_scale = ((r"slim/rtsm_0/.*", 2.0),)  # the config has the last word
    assert optim.flat(optim.multipliers(variables["params"], stage, model))["slim/rtsm_0/norm1/scale"] == 2.0


def test_a_distilled_sit_trains_both_heads():
    model, variables = built("deit_distilled", method="sit", locations=(1, 2))
    logits, aux = run(model, variables, IMAGES, train=True, rngs=KEY)
    np.testing.assert_allclose(logits, (aux.taps["head_logits"] + aux.taps["dist_logits"]) / 2, rtol=1e-6)
    targets = slim.Targets(LABELS)
    losses = model.losses(logits, aux, targets)
    assert set(losses) == {"classification"}
    np.testing.assert_allclose(losses["classification"], loss_functions.classification(logits, aux.taps, targets))
