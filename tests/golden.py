"""Reading the golden files: weights, images and float64 results of the official implementations (see goldens/)."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

import slimvit_jax as slim
from slimvit_jax.convert.statedict import from_torch

HERE = Path(__file__).parent / "goldens"
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


def close(ours: Any, reference: np.ndarray, atol: float = 1e-4) -> None:
    """Within `atol`, relative to the largest reference value where that exceeds 1."""
    np.testing.assert_allclose(
        np.asarray(ours, np.float64), reference, rtol=0, atol=atol * max(1.0, float(np.abs(reference).max()))
    )
