"""Memory per device of training ViT-L/16 and ViT-H/14, and what limits its scaling: computed, for docs/scaling.md.

    python -m benchmarks.memory [--check] [--output results/memory.json]            half a minute, tables in Markdown

Nothing is trained and no accelerator is needed. State (parameters, gradients, Adam's moments, average) is the train
state as the training loop builds it, in shapes only, cut by the loop's own sharding rule for so many devices.
Activations per image are what automatic differentiation keeps between the forward and the backward pass, counted from
the traced program. --check compiles the steps of a small model on CPU and puts XLA's own figure beside that count.
Step times are arithmetic on the speeds in DEVICES, which are their makers' figures.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import slimvit_jax as slim
from benchmarks.results import table
from slimvit_jax.files import write_json
from slimvit_jax.losses import Targets
from slimvit_jax.training import build, default_config, devices, validate
from slimvit_jax.training.config import add_stage
from slimvit_jax.training.step import join

GIB, MIB = 2**30, 2**20
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "ViT-L/16": ("vit_large_patch16_224", {}),
    "ViT-H/14": ("vit", {"img_size": 224, "patch_size": 14, "embed_dim": 1280, "depth": 32, "num_heads": 16}),
}
SMALL = ("vit", {"img_size": 224, "patch_size": 16, "embed_dim": 192, "depth": 6, "num_heads": 3})
#: Stages of life regression: the dense model, the predictor alone, the backbone under it.
STAGES: dict[str, dict[str, Any]] = {
    "dense": {"slimmed": False, "trainable": "all"},
    "stage 1: predictor": {"trainable": "method"},
    "stage 2: backbone": {"trainable": "backbone"},
}
MESHES = ((1, 1), (8, 1), (64, 1), (8, 8), (64, 8))  # (devices, fsdp)
#: Peak bfloat16 FLOP/s, bytes/s one device sends (and receives) inside its host and to other hosts, bytes of memory.
DEVICES = {
    "H100 SXM, NVLink 4, InfiniBand NDR": (989e12, 450e9, 50e9, 80e9),
    "TPU v5e": (197e12, 100e9, 100e9, 16e9),
}
UTILISATION = 0.4  # of the peak that a step reaches: an assumption


@dataclasses.dataclass(frozen=True)
class Need:
    """Bytes on one device; the gradients live beside the state while a step runs."""

    parameters: int
    gradients: int
    moments: int
    average: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.parameters + self.gradients + self.moments + self.average


def config_for(name: str, options: dict[str, Any]) -> Any:
    """A config with the three stages of life regression, each with an average of the weights."""
    config = default_config()
    config.model.name = name
    config.model.options = {"num_classes": 1000, "dtype": "bfloat16", **options}
    depth = slim.create_model(name, **config.model.options).geometry.depth
    config.method.options = {"keep_rate": 0.7, "locations": tuple(depth * third // 12 for third in (4, 7, 10))}
    for number, fields in enumerate(STAGES.values()):
        add_stage(config, str(number), ema=0.9999, **fields)
    return validate(config)


def stages_for(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """The stages, by the names of STAGES, built but without weights."""
    config = config_for(name, options)
    built = [build.build_stage(config, number, 1000) for number in config.schedule]
    return dict(zip(STAGES, built, strict=True))


def abstract_state(stage: Any) -> Any:
    """The train state in shapes."""
    return jax.eval_shape(lambda: stage.state(*stage.fresh()))


def state_need(stage: Any, count: int, fsdp: int, smallest: int = 16384) -> Need:
    """What the state takes on each of `count` devices of which `fsdp` share one copy."""
    mesh: Any = jax.sharding.AbstractMesh((count // fsdp, fsdp), ("data", "fsdp"))
    state = abstract_state(stage)
    sharded = devices.state_shardings(mesh, state, smallest)

    def size(part: str) -> int:
        leaves = zip(jax.tree.leaves(getattr(state, part)), jax.tree.leaves(getattr(sharded, part)), strict=True)
        return sum(math.prod(place.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf, place in leaves)

    held = sum(size(part) for part in ("params", "frozen", "batch_stats", "teacher"))
    return Need(held, size("params"), size("opt_state"), size("ema"))


def activations(stage: Any) -> int:
    """Bytes per image that the backward pass needs of the forward pass, without what recomputation would save."""
    state, model = abstract_state(stage), stage.model

    def kept(batch: int) -> int:
        def forward(params: Any, state: Any, images: Any) -> Any:
            def loss(params: Any) -> Any:
                variables = join(params, state.frozen, state.batch_stats)
                rngs = {"dropout": jax.random.key(0)}
                logits, aux = model.apply(variables, images, train=True, return_aux=True, rngs=rngs)
                labels = jnp.full((batch, model.num_classes), 1 / model.num_classes)
                return sum(value.mean() for value in model.losses(logits, aux, Targets(labels)).values())

            return jax.vjp(loss, params)[1]  # a tree whose leaves are what it keeps

        images = jax.ShapeDtypeStruct((batch, *model.img_size, model.in_chans), jnp.float32)
        return sum(
            x.size * x.dtype.itemsize for x in jax.tree.leaves(jax.eval_shape(forward, state.params, state, images))
        )

    return kept(2) - kept(1)  # the parameters it keeps are in both


def compiled_need(stage: Any) -> float:
    """Bytes per image by XLA's analysis of the compiled step on this backend, from two batch sizes."""
    mesh = devices.make_mesh()
    place = devices.batch_sharding(mesh)

    def temporaries(batch: int) -> int:
        shape = lambda *axes, dtype=np.float32: jax.ShapeDtypeStruct((batch, *axes), dtype, sharding=place)
        size = (*stage.model.img_size, stage.model.in_chans)
        inputs = {"image": shape(*size), "label": shape(dtype=np.int32), "mask": shape()}
        return stage.compiled_step(mesh, abstract_state(stage), inputs).memory_analysis().temp_size_in_bytes

    return (temporaries(8) - temporaries(4)) / 4


def memory_rows() -> Iterable[dict[str, Any]]:
    """One row per model and stage."""
    for label, (name, options) in MODELS.items():
        plain, again = stages_for(name, options), stages_for(name, options | {"remat": True})
        for stage in STAGES:
            yield {
                "model": label,
                "stage": stage,
                "state": {f"{n} devices, fsdp={f}": state_need(plain[stage], n, f) for n, f in MESHES},
                "activations": activations(plain[stage]),
                "activations_remat": activations(again[stage]),
                "blocks": plain[stage].model.geometry.depth,
            }


def scaling_rows() -> Iterable[dict[str, Any]]:
    """Compute and communication of a dense step, per device: what the links cost at 8 and at 64 devices."""
    for label, (name, options) in {**MODELS, "DeiT-S": ("deit_small_patch16_224", {})}.items():
        stage = stages_for(name, options)["dense"]
        gradients = state_need(stage, 1, 1).gradients
        flops = 6 * slim.flops(stage.model).total  # 2 per multiply-add; the backward pass costs twice the forward one
        for device, (peak, inside, outside, _) in DEVICES.items():
            speed = UTILISATION * peak / flops
            ring = lambda n, size=gradients: 2 * (n - 1) / n * size
            eight, many = ring(8) / inside, ring(64) / outside
            # parameters gathered for each pass and gradients scattered inside 8; then one eighth reduced between hosts
            fsdp = 3 * (7 / 8) * gradients / inside + ring(8, gradients / 8) / outside
            yield {
                "model": label,
                "device": device,
                "gradient_bytes": gradients,
                "images_per_second": speed,
                "seconds": {"8 devices": eight, "64 devices": many, "64 devices, fsdp=8": fsdp},
                "batch_that_hides": {
                    "8 devices": eight * speed,
                    "64 devices": many * speed,
                    "64 devices, fsdp=8": fsdp * speed,
                },
            }


def memory_tables(rows: list[dict[str, Any]]) -> str:
    """State, then activations."""
    parts = []
    for row in rows:
        one = row["state"]["1 devices, fsdp=1"]
        sizes = [one.parameters, one.gradients, one.moments, one.average, one.total]
        sizes += [row["state"][f"{n} devices, fsdp=8"].total for n in (8, 64)]
        parts.append([row["model"], row["stage"], *(f"{size / GIB:.2f}" for size in sizes)])
    head = ["model", "trains", "parameters", "gradients", "moments", "average", "fsdp=1", "8 devices, fsdp=8"]
    state = table([*head, "64 devices, fsdp=8"], parts, 2)
    parts = []
    for row in rows:
        block = (row["activations"] - row["activations_remat"]) / row["blocks"]
        again = row["activations_remat"] + block  # what is kept, and one block being done again
        cells = [row["model"], row["stage"], f"{row['activations'] / MIB:.0f}", f"{again / MIB:.0f}"]
        for memory in (80e9, 16e9):
            for sharding in ("1 devices, fsdp=1", "8 devices, fsdp=8"):
                free = 0.9 * memory - row["state"][sharding].total
                cells.append(" / ".join(f"{max(0, free // each):.0f}" for each in (row["activations"], again)))
        parts.append(cells)
    head = [
        "model",
        "trains",
        "MiB an image",
        "with remat",
        "80 GB, fsdp=1",
        "80 GB, fsdp=8",
        "16 GB, fsdp=1",
        "16 GB, fsdp=8",
    ]
    return state + "\n\n" + table(head, parts, 2)


def scaling_table(rows: list[dict[str, Any]]) -> str:
    """Milliseconds of communication, and the batch per device whose computation takes as long."""
    kinds = list(rows[0]["seconds"])
    parts = [
        [row["model"], row["device"], f"{row['gradient_bytes'] / GIB:.2f}", f"{row['images_per_second']:,.0f}"]
        + [f"{1000 * row['seconds'][kind]:.1f} ms = {row['batch_that_hides'][kind]:.0f} images" for kind in kinds]
        for row in rows
    ]
    return table(["model", "device", "gradients, GiB", "images/s a device", *kinds], parts, 2)


def main() -> int:
    """Computes, prints the tables, writes the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true", help="compile a small model's steps and compare activations")
    parser.add_argument("--output", metavar="FILE", help="write all numbers there, as JSON")
    args = parser.parse_args()
    memory, scaling = list(memory_rows()), list(scaling_rows())
    print(memory_tables(memory), scaling_table(scaling), sep="\n\n")
    check = []
    if args.check:
        name, options = SMALL
        for label, stage in stages_for(name, options | {"dtype": "float32"}).items():
            check.append({"stage": label, "counted": activations(stage), "compiled": compiled_need(stage)})
            counted, compiled = (check[-1][kind] / MIB for kind in ("counted", "compiled"))
            print(f"\n{label}: {counted:.2f} MiB an image counted, {compiled:.2f} compiled")
    if args.output:
        plain = [{**row, "state": {k: dataclasses.asdict(v) for k, v in row["state"].items()}} for row in memory]
        write_json(args.output, {"memory": plain, "scaling": scaling, "check": check})
    return 0


if __name__ == "__main__":
    sys.exit(main())
