"""What throughput.py times beside forward passes: life regression's own work, and training steps."""

from __future__ import annotations

import argparse
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import slimvit_jax as slim
from benchmarks.programs import forward, step_flops, training_step, variables_for
from slimvit_jax.inference.timing import interleave, sampler
from slimvit_jax.tokens import Tokens


def overhead_share(args: argparse.Namespace, name: str, batch: int, dtype: str, progress: Any) -> list[dict[str, Any]]:
    """Score, sort, gather and every later slice on their own, as a share of the slimmed forward pass.

    An upper bound: inside the model XLA fuses the slices with what follows.
    """
    rows = []
    for rate in args.keep_rates:
        options = {"keep_rate": rate, "dtype": dtype, **args.model_options}
        model = slim.create_model(name, method="life_regression", **options)
        method, geometry = model.slim, model.geometry
        shape = (batch, geometry.prefix_tokens + geometry.num_patches, geometry.dim)
        x = jnp.asarray(np.random.default_rng(0).normal(size=shape), dtype)
        origin = jnp.broadcast_to(jnp.arange(geometry.num_patches, dtype=jnp.int32), (batch, geometry.num_patches))

        def slimming(variables: Any, x: Any, origin: Any, method: Any = method, geometry: Any = geometry) -> Any:
            def hooks(module: Any) -> list[Any]:
                tokens = Tokens(x=x, origin=origin, prefix=geometry.prefix_tokens)
                tokens, seen = module.after_block(tokens, module.base, False), []
                for layer in range(module.base + 1, geometry.depth + 1):
                    tokens = module.before_block(tokens, layer, False)
                    if not seen or tokens.x.shape != seen[-1].shape:
                        seen.append(tokens.x)
                return seen

            return method.apply(variables, method=hooks)

        variables = {"params": variables_for(model)["params"]["slim"]}
        run = jax.jit(slimming).lower(variables, x, origin).compile()
        own = sampler(lambda run=run, v=variables, x=x, o=origin: jax.block_until_ready(run(v, x, o)))
        progress(f"compile {rate:g}")
        whole = sampler(forward(model, batch).call)
        timings = interleave({"own": own, "whole": whole}, args.rounds, args.min_seconds, 0.0, progress)
        share = timings["own"].median / timings["whole"].median
        rows.append(
            {"model": name, "batch": batch, "dtype": dtype, "keep_rate": rate, "share_of_forward": share}
            | {"milliseconds": 1000 * timings["own"].median, "own": timings["own"].wall, "whole": timings["whole"].wall}
        )
    return rows


def training_steps(args: argparse.Namespace, name: str, batch: int, dtype: str, progress: Any) -> list[dict[str, Any]]:
    """Steps of the training loop (AdamW): predictor only, backbone only, and full fine-tuning of all parameters.

    "hard masks" compute all patches, "kept patches" what inference computes; `sampled` of the dropped besides.
    """
    create = functools.partial(slim.create_model, name, dtype=dtype, **args.model_options)
    life = functools.partial(create, method="life_regression", keep_rate=args.keep_rates[0])
    model, kept = life(), life(hard=True, train_tokens="kept")
    sampled = max(1, model.geometry.num_patches // 12)
    dense = create(method=slim.Slimming())  # a name such as "sit_s" would bring its method
    cases = {
        "full fine-tuning, dense": (dense, "all"),
        "stage 1: predictor": (model, "method"),
        "stage 2: backbone": (model, "backbone"),
        "full fine-tuning": (model, "all"),
        "full fine-tuning, hard masks": (life(hard=True), "all"),
        "full fine-tuning, kept patches": (kept, "all"),
        f"full fine-tuning, kept patches and {sampled} of the dropped": (
            life(hard=True, train_tokens="kept", sampled_dropped=sampled),
            "all",
        ),
    }
    samplers = {}
    for label, (module, trainable) in cases.items():
        progress(f"compile {label}")
        samplers[label] = sampler(training_step(module, trainable, batch).call)
    timings = interleave(samplers, args.rounds, args.min_seconds, 0.0, progress)
    reference, full = timings["full fine-tuning, dense"], step_flops(dense, "all")
    return [
        {"model": name, "batch": batch, "dtype": dtype, "keep_rate": args.keep_rates[0], "step": label}
        | {"milliseconds": 1000 * timing.median, "of_dense": timing.median / reference.median}
        | {"cpu_of_dense": timing.median_cpu / max(reference.median_cpu, 1e-9)}
        | {"flops_of_dense": step_flops(*cases[label]) / full, "wall": timing.wall, "cpu": timing.cpu}
        for label, timing in timings.items()
    ]
