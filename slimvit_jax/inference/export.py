"""A model's inference function as a StableHLO artifact that needs neither flax nor this library to run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.export
import jax.numpy as jnp


def export_inference(
    model: Any, variables: Any, batch_size: int | None = None, platforms: Sequence[str] | None = None
) -> jax.export.Exported:
    """images (B, H, W, C) float32 -> logits (B, classes) float32, with the weights inside.

    Args:
      model: from create_model.
      variables: its variables.
      batch_size: a fixed B, or None for any.
      platforms: "cpu", "cuda", "rocm", "tpu"; None: the present one. For others, build the model with attention="xla",
        since "auto" chooses for the present one.
    """
    batch = jax.export.symbolic_shape("batch")[0] if batch_size is None else batch_size
    images = jax.ShapeDtypeStruct((batch, *model.img_size, model.in_chans), jnp.float32)
    forward = jax.jit(lambda images: model.apply(variables, images))
    return jax.export.export(forward, platforms=None if platforms is None else tuple(platforms))(images)
