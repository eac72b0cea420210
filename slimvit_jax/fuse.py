"""Batch norms folded into the layers next to them, for inference."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from slimvit_jax.backbones.base import Backbone
from slimvit_jax.convert.rules import flatten, unflatten
from slimvit_jax.errors import SlimError
from slimvit_jax.layers_conv import BatchNorm

Path = tuple[str, ...]


def fuse(model: Backbone, variables: Mapping[str, Any]) -> tuple[Backbone, dict[str, Any]]:
    """The model without its batch norms, and its variables: the same numbers, up to rounding, in less time.

    With the running statistics a batch norm is y * gain + shift. Behind a layer without bias the gain goes into the
    kernel's columns and the shift becomes the bias; in front of a layer with bias (LeViT's heads) they go through the
    kernel's rows. LeViT's attention biases are expanded from one per distance to one per query and key.

    Args:
      model: a LeViT or an LV-ViT with a convolutional stem.
      variables: of that model, with "batch_stats".

    Returns:
      (model, variables): inference only; `train=True` is refused. State-dict names are those of the layers.

    Raises:
      SlimError: the model has no batch norm, or is fused already; the variables are of another model.
    """
    partners = model.fuse_partners
    if not partners:
        raise SlimError(f"fuse: {type(model).__name__} has no batch norm to fold into another layer")
    if model.options()["fused"]:
        raise SlimError("fuse: the model is fused already")
    flat = flatten(variables)
    if not any(path[0] == "batch_stats" for path in flat):
        raise SlimError("fuse: the variables have no batch_stats, the running statistics to fold")
    norms = {path[1:-1] for path in flat if path[0] == "batch_stats"}
    fused = {path: array for path, array in flat.items() if path[0] == "params" and path[1:-1] not in norms}
    for norm in norms:
        partner = next(re.sub(own, other, norm[-1]) for own, other in partners.items() if re.fullmatch(own, norm[-1]))
        _fold(fused, flat, norm, ("params", *norm[:-1], partner))
    fused = {path: model.fused_parameter(path, jnp.asarray(array, jnp.float32)) for path, array in fused.items()}
    return model.clone(fused=True), unflatten(fused)


def _fold(fused: dict[Path, Any], flat: Mapping[Path, Any], norm: Path, layer: Path) -> None:
    scale, bias = (np.asarray(flat["params", *norm, name], np.float64) for name in ("scale", "bias"))
    mean, var = (np.asarray(flat["batch_stats", *norm, name], np.float64) for name in ("mean", "var"))
    gain = scale / np.sqrt(var + BatchNorm.eps)
    shift = bias - mean * gain
    kernel = np.asarray(fused[*layer, "kernel"], np.float64)
    if (*layer, "bias") in fused:  # the norm comes first
        fused[*layer, "kernel"] = kernel * gain[:, None]
        fused[*layer, "bias"] = np.asarray(fused[*layer, "bias"], np.float64) + shift @ kernel
    else:
        fused[*layer, "kernel"] = kernel * gain
        fused[*layer, "bias"] = shift
