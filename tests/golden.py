"""Golden files (weights, images and float64 results of official implementations, see goldens/), and small models."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import slimvit_jax as slim
from slimvit_jax.convert.statedict import from_torch

HERE = Path(__file__).parent / "goldens"
#: For jax.jit: what conftest.py switches off to compile faster, on again, as it is for users.
AS_USERS = {
    "xla_backend_optimization_level": 3,
    "xla_llvm_disable_expensive_passes": False,
    "xla_cpu_use_fusion_emitters": True,
}
BACKBONE = ("img_size", "patch_size", "num_classes", "embed_dim", "depth", "num_heads")


@dataclasses.dataclass(frozen=True)
class Golden:
    """One case: `arrays` as stored, `meta` decoded."""

    arrays: dict[str, np.ndarray]
    meta: dict[str, Any]

    @classmethod
    def load(cls, case: str) -> Golden:
        """The case, every array read."""
        with np.load(HERE / f"{case}.npz") as file:
            arrays = {name: file[name] for name in file.files}
        return cls(arrays, json.loads(str(arrays.pop("meta"))))

    @property
    def images(self) -> jnp.ndarray:
        """NHWC."""
        return jnp.asarray(self.arrays["images"].transpose(0, 2, 3, 1), jnp.float32)

    def state(self, prefix: str = "sd/") -> dict[str, np.ndarray]:
        """The state dict in float32."""
        return {k[len(prefix) :]: np.asarray(v, np.float32) for k, v in self.arrays.items() if k.startswith(prefix)}

    def out(self, name: str) -> np.ndarray:
        """One result."""
        return self.arrays[f"out/{name}"]

    def model(self, method: str | None, family: str = "vit", prefix: str = "sd/", **options: Any) -> tuple[Any, Any]:
        """(model, variables) of the backbone stored here with a method."""
        backbone = {k: v for k, v in self.meta["constructor_kwargs"].items() if k in BACKBONE}
        model = slim.create_model(family, method=method, **backbone, **options)
        return model, from_torch(model, self.state(prefix))


@functools.cache
def golden_run(case: str) -> tuple[Golden, Any, Any, Any]:
    """(golden, model, logits, aux) of the case that has a method's name, on its images."""
    golden = Golden.load(case)
    model, variables = golden.model(case)
    return golden, model, *run(model, variables, golden.images)


def drawn(model: Any, variables: Any, images: Any, seeds: Sequence[int]) -> list[Any]:
    """The aux of the training path for each seed, compiled once."""
    apply = jax.jit(lambda key: model.apply(variables, images, train=True, return_aux=True, rngs={"dropout": key})[1])
    return [apply(jax.random.key(seed)) for seed in seeds]


def close(ours: Any, reference: np.ndarray, atol: float = 1e-4) -> None:
    """Within `atol`, relative to the largest reference value where that exceeds 1."""
    np.testing.assert_allclose(
        np.asarray(ours, np.float64), reference, rtol=0, atol=atol * max(1.0, float(np.abs(reference).max()))
    )


def groups(owner: Any) -> np.ndarray:
    """Owners (B, L), -1 for none, as the goldens name them: by the smallest original token of the same owner."""
    owner = np.asarray(owner)
    together = owner[:, :, None] == owner[:, None, :]
    return np.where(owner < 0, -1, together.argmax(axis=2))


def random_variables(model: Any, seed: int = 0) -> dict[str, Any]:
    """Variables without running `init`: kernels keep the scale of their input, nothing is zero."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *model.img_size, model.in_chans)))
    rng = np.random.default_rng(seed)

    def draw(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jnp.ndarray:
        noise, name = rng.normal(size=leaf.shape), path[-1].key
        if name == "var":
            value = rng.uniform(0.5, 1.5, leaf.shape)
        elif name == "kernel":
            value = 1.4 * noise / np.sqrt(np.prod(leaf.shape[:-1]))
        elif name in ("scale", "gamma"):
            value = 1 + 0.1 * noise
        else:
            value = (0.1 if name in ("bias", "mean", "weight") else 0.5) * noise
        return jnp.asarray(value, leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


@functools.cache
def small(family: str = "vit", method: str | None = None, **options: Any) -> tuple[Any, Any]:
    """(model, variables), drawn once."""
    model = slim.create_model(family, method=method, **options)
    return model, random_variables(model)


def run(model: Any, variables: Any, images: Any, compiler_options: Any = None, **options: Any) -> tuple[Any, Any]:
    """(logits, aux), compiled."""
    apply = jax.jit(lambda v, x: model.apply(v, x, return_aux=True, **options), compiler_options=compiler_options)
    return apply(variables, images)
