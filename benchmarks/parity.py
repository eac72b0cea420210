"""Whether an accelerator computes what a CPU computes: every method, forward and backward.

    python -m benchmarks.parity --output results/gpu/parity.json [--methods topk,tome] [--tolerance 1e-4]

A second process on the CPU computes the reference from the same weights and images; both in float32, matrix products
at the highest precision. Compared are logits, the indices kept, and the gradient of the training path, the last
relative to its largest entry. Methods that draw random numbers draw the same ones on all devices. On a GPU, attention
in bfloat16 through the fused kernel is compared with the plain form besides. Exit status 1 where something is further
off than the tolerance.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import slimvit_jax as slim
from benchmarks.command import command_line
from slimvit_jax.errors import SlimError
from slimvit_jax.files import write_json
from slimvit_jax.inference.timing import describe_machine

SHAPE = {"img_size": 32, "patch_size": 4, "embed_dim": 64, "depth": 4, "num_heads": 2, "num_classes": 10}
LOCATIONS = (2, 3)
BATCH = 4


def model_of(method: str) -> Any:
    """A small model of 64 patches that drops or merges twice."""
    options = {"locations": LOCATIONS} if "locations" in slim.methods.METHODS[method].__dataclass_fields__ else {}
    try:
        return slim.create_model("vit", method, **SHAPE, **options)
    except SlimError:  # a method with constraints of its own: its defaults
        return slim.create_model("vit", method, **SHAPE)


def weights_of(model: Any) -> Any:
    """Random variables at which layers and scores are of the order of 1, the same in every process."""
    images = jax.ShapeDtypeStruct((1, *model.img_size, model.in_chans), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    random = np.random.default_rng(0)

    def fill(path: Any, leaf: Any) -> Any:
        mean = float(path[-1].key in ("scale", "var", "gamma"))
        fan_in = leaf.shape[-2] if leaf.ndim > 1 else 100
        return jnp.asarray(random.normal(mean, fan_in**-0.5, leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, shapes)


def outcome(method: str) -> dict[str, np.ndarray]:
    """What this process's device makes of one method."""
    model = model_of(method)
    variables = weights_of(model)
    images = jnp.asarray(np.random.default_rng(1).normal(size=(BATCH, *model.img_size, model.in_chans)), jnp.float32)
    logits, aux = jax.jit(lambda v, x: model.apply(v, x, return_aux=True))(variables, images)
    found = {"logits": logits} | {f"kept{number}": index for number, index in enumerate(aux.kept or ())}

    def loss(params: Any) -> Any:
        rngs = {"dropout": jax.random.key(0)}
        logits, _ = model.apply({**variables, "params": params}, images, train=True, return_aux=True, rngs=rngs)
        return jax.nn.logsumexp(logits, axis=-1).mean() + jnp.square(logits).mean()

    gradient = jax.jit(jax.grad(loss))(variables["params"])
    found["gradient"] = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(gradient)])
    return {name: np.asarray(value) for name, value in found.items()}


def compare(ours: dict[str, np.ndarray], reference: dict[str, np.ndarray]) -> dict[str, Any]:
    """Greatest differences of one method."""
    far = lambda name: float(np.abs(ours[name] - reference[name]).max() / max(1e-30, np.abs(reference[name]).max()))
    kept = [name for name in reference if name.startswith("kept")]
    same = float(np.mean([np.mean(ours[name] == reference[name]) for name in kept])) if kept else None
    return {"logits": far("logits"), "gradient": far("gradient"), "kept_alike": same}


def fused_attention() -> float:
    """How far the fused kernel is from the plain form in bfloat16, relative to the largest value; GPU only."""
    from slimvit_jax.ops.attention import attention

    keys = jax.random.split(jax.random.key(0), 3)
    query, key, value = (jax.random.normal(k, (8, 197, 6, 64), jnp.bfloat16) for k in keys)
    fused, plain = (attention(query, key, value, backend=kind).astype(jnp.float32) for kind in ("cudnn", "xla"))
    return float(jnp.abs(fused - plain).max() / jnp.abs(plain).max())


def references(methods: list[str], folder: Path) -> None:
    """Writes METHOD.npz of every method."""
    for method in methods:
        np.savez(folder / f"{method}.npz", **outcome(method))  # type: ignore[arg-type]


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parity")
    parser.add_argument("--methods", default="all", metavar="NAME,...")
    parser.add_argument("--tolerance", type=float, default=1e-4, metavar="T", help="of logits and gradient, relative")
    parser.add_argument("--output", metavar="FILE")
    parser.add_argument("--reference", metavar="DIR", help=argparse.SUPPRESS)  # the second process
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Compares, prints a line per method, writes the JSON; exit status 2 for bad input."""
    args = parse(argv)
    methods = slim.list_methods() if args.methods == "all" else args.methods.split(",")
    unknown = sorted(set(methods) - set(slim.list_methods()))
    if unknown:
        print(f"parity: error: no method {unknown[0]!r}; choices: {', '.join(slim.list_methods())}", file=sys.stderr)
        return 2
    jax.config.update("jax_default_matmul_precision", "highest")
    if args.reference:
        references(methods, Path(args.reference))
        return 0
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        words = ["-m", "benchmarks.parity", f"--methods={','.join(methods)}", f"--reference={folder}"]
        subprocess.run([sys.executable, *words], check=True, env={**os.environ, "JAX_PLATFORMS": "cpu"})
        for method in methods:
            row: dict[str, Any] = {"method": method, "close": False}
            rows.append(row)
            try:
                with np.load(Path(folder) / f"{method}.npz") as reference:
                    row |= compare(outcome(method), dict(reference))
            except RuntimeError as error:  # what the device's compiler or memory says; the others may run
                row["error"] = str(error).splitlines()[0][:200]
                print(f"FAILS {method:16} {row['error']}", flush=True)
                continue
            row["close"] = max(row["logits"], row["gradient"]) <= args.tolerance and row["kept_alike"] in (None, 1.0)
            alike = "" if row["kept_alike"] is None else f", kept alike {row['kept_alike']:.1%}"
            far = f"logits {row['logits']:.1e}, gradient {row['gradient']:.1e}{alike}"
            print(f"{'close' if row['close'] else 'FAR  '} {method:16} {far}", flush=True)
    result: dict[str, Any] = {"command": command_line("parity", argv or None)}
    result |= {"machine": describe_machine(), "tolerance": args.tolerance, "rows": rows}
    if jax.default_backend() == "gpu":
        try:
            result["fused_attention"] = fused_attention()
        except RuntimeError as error:
            result["fused_attention"] = str(error).splitlines()[0][:200]
        print(f"fused attention in bfloat16: {result['fused_attention']}")
    if args.output:
        write_json(args.output, result)
    return 0 if all(row["close"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
