"""The step: what is frozen costs nothing, the optimiser does what the config says, many devices equal one."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from train_tools import ROOT, batch_of, tiny_config

import slimvit_jax as slim
from slimvit_jax.errors import SlimError
from slimvit_jax.training import build, devices, optim
from slimvit_jax.training.optim import flat


@pytest.fixture(scope="module")
def config():
    return tiny_config()


def start(config, name):
    stage = build.build_stage(config, name, 5)
    return stage, stage.state(build.init_variables(stage.model, 0), None)


def test_frozen_parameters_have_no_gradient_and_no_optimiser_state(config):
    for name, learns_method in (("predictor", True), ("backbone", False)):
        stage, state = start(config, name)
        learning = flat(state.params)
        assert learning and all(path.startswith("slim/") == learns_method for path in learning)
        assert flat(state.frozen).keys().isdisjoint(learning)
        shapes = [leaf.shape for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
        assert sorted(shapes) == sorted([leaf.shape for leaf in learning.values()] * 2)  # Adam's two moments
        after, _ = jax.jit(stage.step_function())(state, batch_of())
        for path, leaf in flat(state.frozen).items():
            assert np.array_equal(leaf, flat(after.frozen)[path]), path
        changed = [path for path, leaf in learning.items() if not np.array_equal(leaf, flat(after.params)[path])]
        assert changed


def products(jaxpr) -> int:
    """Matrix products in a program and the programs it calls."""
    count = 0
    for equation in jaxpr.eqns:
        count += equation.primitive.name == "dot_general"
        for value in equation.params.values():
            for inner in value if isinstance(value, (list, tuple)) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    count += products(inner)
    return count


def test_stage_one_computes_no_weight_gradient_of_the_backbone(config):
    """Backward costs one product per layer input above t_base and none for weights: far fewer than a full backward."""
    counts = {}
    for name in ("predictor", "backbone"):
        stage, state = start(config, name)
        program = jax.jit(stage.step_function()).trace(state, batch_of()).jaxpr
        program, _ = jax.interpreters.partial_eval.dce_jaxpr(program.jaxpr, [True] * len(program.jaxpr.outvars))
        counts[name] = products(program)
    model = stage.model
    variables = build.init_variables(model, 0)
    forward = jax.make_jaxpr(lambda v, x: model.apply(v, x, train=True, rngs={"dropout": jax.random.key(0)}))(
        variables, jnp.zeros((16, 16, 16, 1))
    )
    base = products(forward.jaxpr)
    backward = counts["predictor"] - base
    # 2 of 3 layers lie above t_base = 1: 4 dense inputs and at most 4 attention products each; plus head and predictor
    assert backward <= 2 * (4 + 4) + 4, (counts, base)
    assert counts["backbone"] - base > 1.5 * backward


def test_learning_rates_decay_and_layers(config):
    stage = tiny_config().stages.backbone
    stage.update(layer_decay=0.5, lr_scale=(("head/.*", 3.0),))
    stage.lr.method = 1e-2
    stage.lr.backbone = 1e-3
    model = build.build_model(config)
    params = build.init_variables(model, 0)["params"]
    factors = flat(optim.multipliers(params, stage, model))
    assert factors["blocks_2/attn/qkv/kernel"] == 0.5 and factors["blocks_0/attn/qkv/kernel"] == 0.125
    assert factors["patch_embed/proj/kernel"] == 0.0625 and factors["norm/scale"] == 1.0
    assert factors["head/kernel"] == 3.0 and factors["slim/life_predictor/weight"] == 10.0
    decays = flat(optim.decay_mask(params, model.no_weight_decay))
    assert {path for path, value in decays.items() if value} == {
        path for path, leaf in flat(params).items() if path.endswith(("kernel", "life_predictor/weight"))
    }
    assert not decays["pos_embed"] and not decays["cls_token"]


def test_layer_decay_of_a_model_of_stages():
    """LeViT: the stem, stage 0 with two blocks, then stage 1: first what subsamples, then its block; then the heads."""
    sizes = dict(img_size=64, embed_dim=(16, 24), num_heads=(2, 2), depth=(2, 1), key_dim=(8, 8), num_classes=10)
    model = slim.create_model("levit", **sizes)
    params = jax.eval_shape(lambda: build.init_variables(model, 0))["params"]
    stage = tiny_config().stages.dense
    stage.update(layer_decay=0.5)
    factors = flat(optim.multipliers(params, stage, model))
    of = lambda start: {factor for path, factor in factors.items() if path.startswith(start)}
    assert of("head") == {1.0} and of("stages_1/blocks_0") == {0.5} and of("stages_1/downsample") == {0.25}
    assert of("stages_0/blocks_1") == {0.125} and of("stages_0/blocks_0") == {0.0625} and of("stem") == {0.03125}


def test_unknown_part_to_train(config):
    with pytest.raises(SlimError, match="unknown value of trainable 'heads'; .*choices: all, backbone, head, method"):
        optim.select({"head": {"bias": 0}}, "heads")


def test_schedule_warms_up_and_ends():
    stage = tiny_config().stages.dense
    stage.update(warmup_epochs=2.0, final_lr=0.1)
    stage.lr.backbone = 1.0
    rate = optim.schedule(stage, steps=20, steps_per_epoch=5)
    rates = [float(rate(step)) for step in range(21)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == pytest.approx(1.0) and rates[10] == pytest.approx(1.0)
    assert rates[20] == pytest.approx(0.1) and max(rates) == pytest.approx(1.0)


def test_accumulation_equals_one_big_batch(config):
    outcomes = []
    for parts in (1, 4):
        config = tiny_config()
        config.stages.dense.accumulate = parts
        stage, state = start(config, "dense")
        after, metrics = jax.jit(stage.step_function())(state, batch_of())
        outcomes.append((flat(after.opt_state[1].mu), np.asarray(metrics)))
    for path, first in outcomes[0][0].items():
        np.testing.assert_allclose(first, outcomes[1][0][path], atol=2e-6, err_msg=path)
    np.testing.assert_allclose(outcomes[0][1], outcomes[1][1], rtol=1e-4)


def test_masked_rows_count_nowhere(config):
    stage, state = start(config, "dense")
    run = jax.jit(stage.step_function())
    batch = batch_of()
    mask = jnp.ones(16).at[8:].set(0)
    other = {**batch, "image": batch["image"].at[8:].add(5.0), "label": batch["label"].at[8:].set(0)}
    first, a = run(state, {**batch, "mask": mask})
    second, b = run(state, {**other, "mask": mask})
    for path, leaf in flat(first.params).items():
        np.testing.assert_allclose(leaf, flat(second.params)[path], atol=1e-6, err_msg=path)
    np.testing.assert_allclose(a, b, rtol=1e-5)


def test_average_of_weights(config):
    config = tiny_config()
    config.stages.dense.ema = 0.9
    stage, state = start(config, "dense")
    after, _ = jax.jit(stage.step_function())(state, batch_of())
    for path, leaf in flat(after.ema).items():
        expected = (
            0.1 * flat(state.params)[path] + 0.9 * flat(after.params)[path]
        )  # first step: decay (1 + 0) / (10 + 0)
        np.testing.assert_allclose(leaf, expected, atol=1e-6)
    assert after.variables["params"].keys() == after.params.keys()


def test_mixup_and_smoothing_run(config):
    config = tiny_config()
    config.mixup.update(mixup=0.8, cutmix=1.0)
    config.stages.dense.label_smoothing = 0.1
    stage, state = start(config, "dense")
    _, metrics = jax.jit(stage.step_function())(state, batch_of())
    assert np.isfinite(metrics).all()


MANY = """
import json, sys
sys.path.insert(0, {root!r} + "/tests")
import jax
jax.config.update("jax_num_cpu_devices", {devices})
import numpy as np
from train_tools import batch_of, tiny_config
from slimvit_jax.training import build, devices
from slimvit_jax.training.optim import flat
from benchmarks.memory import state_need

config = tiny_config()
mesh = devices.make_mesh({fsdp})
stage = build.build_stage(config, "dense", 5, mesh)
state = stage.state(build.init_variables(stage.model, 0), None)
shardings = devices.state_shardings(mesh, state, smallest=256)
abstract = jax.eval_shape(lambda: state)
batch = jax.device_put(batch_of(), devices.batch_sharding(mesh))
jitted = jax.jit(stage.step_function(), out_shardings=(shardings, None), donate_argnums=0)
compiled = jitted.lower(jax.device_put(state, shardings), batch).compile()
state = jax.device_put(state, shardings)
for _ in range(3):
    state, metrics = compiled(state, batch)
held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves((state.params, state.opt_state)))
need = state_need(stage, {devices}, {fsdp}, smallest=256)
split = sum(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state.params))
text = compiled.as_text()
lines = [line.strip() for line in text.splitlines()]
collectives = {{
    kind: sum(f" {{kind}}(" in line or f" {{kind}}-start(" in line for line in lines)
    for kind in ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
}}
print(json.dumps({{
    "metrics": np.asarray(metrics).tolist(),
    "head": np.asarray(flat(state.params)["head/kernel"]).ravel().tolist(),
    "split": split, "collectives": collectives, "held": held, "computed": need.parameters + need.moments,
}}))
"""


@functools.cache
def outcome(count, shards):
    """Of three steps in a process with so many devices, `shards` of which share a copy of the parameters."""
    script = MANY.format(root=str(ROOT), devices=count, fsdp=shards)
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.xdist_group("eight_devices")
@pytest.mark.parametrize("fsdp", [1, 4])
def test_eight_devices_equal_one(fsdp):
    one, many = outcome(1, 1), outcome(8, fsdp)
    np.testing.assert_allclose(one["metrics"], many["metrics"], rtol=1e-4)
    np.testing.assert_allclose(one["head"], many["head"], atol=2e-5)
    assert not any(one["collectives"].values())
    assert one["held"] == one["computed"] and many["held"] == many["computed"]  # what docs/scaling.md says
    if fsdp == 1:
        assert many["split"] == 0
        assert many["collectives"] == {**one["collectives"], "all-reduce": many["collectives"]["all-reduce"]}
        assert many["collectives"]["all-reduce"] == 1, many["collectives"]
    else:
        assert many["split"] > 10 and many["held"] < one["held"] / 2


def test_batches_that_do_not_divide():
    mesh = devices.make_mesh(1)
    with pytest.raises(ValueError, match="batch_size=10 .*nearest that does: 9|12"):
        devices.check_batch(10, mesh, 3 * mesh.size)
