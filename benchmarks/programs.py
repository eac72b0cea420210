"""Compiled programs with what compiling them told: the time it took and the memory XLA plans for them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from slimvit_jax.inference.timing import interleave, sampler
from slimvit_jax.training.step import StepOptions, make_train_step, new_state


def variables_for(model: Any) -> Any:
    """Random variables of a model; no compilation, unlike `model.init`."""
    images = jax.ShapeDtypeStruct((1, *model.img_size, model.in_chans), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    random = np.random.default_rng(0)

    def fill(path: Any, leaf: Any) -> Any:
        positive = path[-1].key in ("scale", "var", "gamma")
        return jnp.asarray(random.normal(float(positive), 0.02, leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, shapes)


@dataclasses.dataclass(frozen=True)
class Program:
    """Something compiled and ready to be timed.

    Attributes:
      call: runs one batch that lies on the device and waits.
      compile_seconds: tracing, lowering and XLA's compilation.
      memory: bytes by XLA's own plan (`memory_analysis`): "arguments" (weights, optimiser state, images), "working"
        (temporary buffers alive at the peak), and "per_image", working bytes over the batch size: activations, and
        whatever copies of weights the compiler makes. None where the backend does not say.
    """

    call: Callable[[], None]
    compile_seconds: float
    memory: dict[str, float] | None


def _compile(function: Any, batch: int, *args: Any) -> tuple[Any, float, dict[str, float] | None]:
    began = time.perf_counter()
    run = function.lower(*args).compile()
    seconds = time.perf_counter() - began
    planned = run.memory_analysis()
    if planned is None:
        return run, seconds, None
    working = planned.temp_size_in_bytes
    memory = {"arguments": planned.argument_size_in_bytes, "working": working, "per_image": working / batch}
    return run, seconds, memory


def forward(model: Any, batch: int) -> Program:
    """Inference."""
    variables = variables_for(model)
    images = jnp.asarray(np.random.default_rng(1).normal(size=(batch, *model.img_size, model.in_chans)), jnp.float32)
    run, seconds, memory = _compile(jax.jit(model.apply), batch, variables, images)
    return Program(lambda: jax.block_until_ready(run(variables, images)), seconds, memory)


def training_step(model: Any, trainable: str, batch: int, teacher: Any = None) -> Program:
    """One AdamW step of the training loop; every call goes on from the state of the last.

    Args:
      model: of `create_model`.
      trainable: "all", "method" or "backbone".
      batch: images.
      teacher: the dense model that the method's losses compare with, or None.
    """
    random = np.random.default_rng(0)
    data = {
        "image": jnp.asarray(random.normal(size=(batch, *model.img_size, model.in_chans)), jnp.float32),
        "label": jnp.asarray(random.integers(0, model.num_classes, batch), jnp.int32),
        "mask": jnp.ones(batch, jnp.float32),
    }
    optimizer = optax.adamw(1e-5)
    taught = None if teacher is None else variables_for(teacher)
    state = new_state(variables_for(model), trainable, optimizer, ema=False, teacher=taught)
    options = StepOptions(loss_weights=model.loss_weights())
    parts = (model, model.losses, optimizer, lambda _: 1e-5, jax.random.key(0), options)
    step = make_train_step(*parts, teacher=teacher)
    run, seconds, memory = _compile(jax.jit(step, donate_argnums=0), batch, state, data)
    held = [state]

    def call() -> None:
        held[0], metrics = run(held[0], data)
        jax.block_until_ready((held[0], metrics))

    return Program(call, seconds, memory)


def fastest_batch(dense: Any, start: int = 128, most: int = 4096, gain: float = 1.03) -> int:
    """The batch size, doubled from `start`, at which a model stops gaining; a GPU needs full batches."""
    best, speed, batch = start, 0.0, start
    while batch <= most:
        try:
            found = batch / interleave({"": sampler(forward(dense, batch).call)}, rounds=3)[""].median
        except RuntimeError:  # out of memory
            break
        if found < gain * speed:
            break
        best, speed, batch = batch, found, 2 * batch
    return best


def measured_peak(dtype: str) -> float:
    """TFLOP/s of a product of two square matrices of random numbers, in this type on this device."""
    side = 8192 if jax.default_backend() == "gpu" else 1024
    keys = jax.random.split(jax.random.key(0))
    left, right = (jax.random.normal(key, (side, side), dtype) for key in keys)
    product = jax.jit(jnp.matmul).lower(left, right).compile()
    timing = interleave({"": sampler(lambda: jax.block_until_ready(product(left, right)))}, rounds=5)[""]
    return 2e-12 * side**3 / timing.median


def step_flops(model: Any, trainable: str) -> int:
    """Multiply-adds of the layers of a training step per image: forward, and as much for each gradient that it takes.

    Of a predictor alone the layers behind it pass gradients on and have none of their own; what is in front of them
    has no backward pass.
    """
    plan, prefix = model.slim.train_plan, model.geometry.prefix_tokens
    block = model.block_class(**model.block_options, parent=None)
    layers = [block.flops(prefix + a, prefix + m) for a, m in zip(plan.attention, plan.mlp, strict=True)]
    if trainable == "method":
        return sum(layers) + sum(layers[model.slim.base :])
    return 3 * sum(layers)
