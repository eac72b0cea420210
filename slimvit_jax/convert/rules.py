"""Names and layouts: flax variables on one side, a torch state dict on the other, each computable from the other.

A variable's state-dict name is its path joined with dots, with four changes:
  * the leading `slim` (a method's own parameters) is left out: slim/life_predictor/weight -> life_predictor.weight;
  * a module name that ends in _digits is a list entry: blocks_3 -> blocks.3;
  * kernel -> weight, a one-dimensional scale -> weight (norms; SiT's scalar `scale` keeps its name);
  * batch statistics: mean -> running_mean, var -> running_var.
A kernel (*spatial, in, out) is transposed to (out, in, *spatial); every other array keeps its layout.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np

from slimvit_jax.errors import SlimError

PARAMS, STATS = "params", "batch_stats"
COUNTER = "num_batches_tracked"
_STATS_LEAVES = {"mean": "running_mean", "var": "running_var"}
_LIST_ENTRY = re.compile(r"^(.+)_(\d+)$")


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One array of a model's variables.

    Attributes:
      path: collection, module names and leaf name, as in the variables.
      shape, dtype: as in the variables.
    """

    path: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: Any

    @property
    def is_kernel(self) -> bool:
        """Whether its layout differs between the two sides."""
        return self.path[-1] == "kernel" and len(self.shape) > 1

    @property
    def torch_shape(self) -> tuple[int, ...]:
        """Shape in the state dict."""
        return tuple(self.shape[axis] for axis in _to_torch_axes(len(self.shape))) if self.is_kernel else self.shape


def _to_torch_axes(ndim: int) -> tuple[int, ...]:
    return (ndim - 1, ndim - 2, *range(ndim - 2))


def to_torch_layout(leaf: Leaf, array: np.ndarray) -> np.ndarray:
    """The array of the variables as the state dict holds it, contiguous."""
    return np.ascontiguousarray(array.transpose(_to_torch_axes(array.ndim)) if leaf.is_kernel else array)


def to_flax_layout(leaf: Leaf, array: np.ndarray) -> np.ndarray:
    """The inverse of `to_torch_layout`."""
    if not leaf.is_kernel:
        return array
    return np.ascontiguousarray(array.transpose(*range(2, array.ndim), 1, 0))


def torch_name(path: tuple[str, ...], ndim: int) -> str:
    """The state-dict name of the variable at `path` (collection first) with `ndim` axes."""
    collection, *modules, leaf = path
    if modules and modules[0] == "slim":
        modules = modules[1:]
    if collection == STATS:
        leaf = _STATS_LEAVES.get(leaf, leaf)
    elif leaf == "kernel" or (leaf == "scale" and ndim == 1):
        leaf = "weight"
    return ".".join([*(_LIST_ENTRY.sub(r"\1.\2", module) for module in modules), leaf])


def flatten(variables: Mapping[str, Any]) -> dict[tuple[str, ...], Any]:
    """Variables as {path: array}; only the collections that hold a model's weights."""
    plain = flax.core.unfreeze(dict(variables))
    kept = {name: plain[name] for name in (PARAMS, STATS) if plain.get(name)}
    return flax.traverse_util.flatten_dict(kept)


def unflatten(flat: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    return flax.traverse_util.unflatten_dict(dict(flat))


def leaves(variables: Mapping[str, Any]) -> dict[str, Leaf]:
    """State-dict name -> Leaf, for variables given as arrays or as shapes."""
    named: dict[str, Leaf] = {}
    for path, array in flatten(variables).items():
        name = torch_name(path, len(array.shape))
        if name in named:
            raise SlimError(
                f"two variables have the state-dict name {name!r}: {'/'.join(named[name].path)} and {'/'.join(path)}"
            )
        named[name] = Leaf(path, tuple(array.shape), array.dtype)
    return named


def dummy_images(model: Any) -> jax.ShapeDtypeStruct:
    """The shape of one input image, enough to trace the model."""
    return jax.ShapeDtypeStruct((1, *model.img_size, model.in_chans), jnp.float32)


def _expected(model: Any) -> dict[str, Leaf]:
    return leaves(jax.eval_shape(model.init, jax.random.key(0), dummy_images(model)))


_cached = functools.lru_cache(maxsize=64)(_expected)


def expected(model: Any, inference: bool = False) -> dict[str, Leaf]:
    """State-dict name -> Leaf of everything the model owns, by tracing its init: no arrays are computed.

    With `inference` without what only training reads (`Backbone.training_only`).
    """
    try:
        everything = _cached(model)
    except TypeError:  # a model with an unhashable field
        everything = _expected(model)
    if not inference:
        return everything
    return {name: leaf for name, leaf in everything.items() if not is_training_only(model, leaf.path)}


def is_training_only(model: Any, path: tuple[str, ...]) -> bool:
    """Whether inference never reads the variable at `path` (collection first)."""
    return any(re.fullmatch(pattern, "/".join(path[1:])) for pattern in model.training_only)


def counters(named: Mapping[str, Leaf]) -> list[str]:
    """The num_batches_tracked names that torch keeps beside the running statistics; they have no variable here."""
    suffix = ".running_mean"
    return [name.removesuffix(suffix) + f".{COUNTER}" for name in named if name.endswith(suffix)]
