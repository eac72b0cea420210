"""What `fit_budget` is given: a target, images, labels and methods, checked before anything is measured."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from slimvit_jax.backbones.vit import VisionTransformer
from slimvit_jax.budget.layerwise import Family
from slimvit_jax.errors import SlimError, unknown
from slimvit_jax.methods import METHODS
from slimvit_jax.options import Positive, kind_of, shown
from slimvit_jax.slimming import Slimming

logger = logging.getLogger(__name__)
#: Methods tried on a dense model's weights unless others are named; "all" are those of `Slimming.untrained`.
USUAL = ("tome", "life_regression", "topk", "diffrate", "pitome")


def check_target(target_ms: Any, speedup: Any) -> float:
    """The one that is given; a SlimError for none, both, or one that asks for nothing."""
    if (target_ms is None) == (speedup is None):
        raise SlimError(f"target_ms={target_ms!r} and speedup={speedup!r}: give one of them")
    name, value = ("target_ms", target_ms) if speedup is None else ("speedup", speedup)
    number: float = kind_of(Positive).value(name, value)
    if speedup is not None and number <= 1:
        raise SlimError(f"speedup={speedup!r} must be above 1: that is how many times faster than the dense model")
    return number


def check_labels(model: Any, labels: Any, count: int) -> None:
    """A SlimError for labels that are no classes of the model, or not one per image."""
    given = np.asarray(labels)
    if given.shape != (count,):
        raise SlimError(f"{given.size} labels for {count} images")
    known = range(model.num_classes)
    if model.num_classes and (wrong := [label for label in given.tolist() if label not in known]):
        raise SlimError(f"labels hold {shown(wrong[0])}: this model has classes 0..{model.num_classes - 1}")


def checked_images(model: Any, images: Any) -> np.ndarray:
    """(n, H, W, C) float32, noise for None; a SlimError for what the model does not take."""
    if images is not None:
        try:
            given = np.asarray(images)
        except ValueError:
            raise SlimError("images of several shapes: this is no array") from None
        if not jnp.issubdtype(given.dtype, jnp.floating):
            raise SlimError(f"images of {given.dtype}: floats are due, as slim.transform_for(model) makes them")
        model.check_images(given.shape)
        if bad := np.flatnonzero(~np.isfinite(given).all(axis=(1, 2, 3))).tolist():
            raise SlimError(f"images {shown(bad)} hold values that are no finite numbers")
        return given.astype(np.float32)
    logger.warning("fit_budget without images: noise stands for them, on which models agree otherwise than on yours")
    return np.random.default_rng(0).standard_normal((32, *model.img_size, model.in_chans), np.float32)


def families_of(model: Any, methods: str | Sequence[str]) -> dict[str, Family]:
    """The model's own method, or those that need no training, by name."""
    own = getattr(model, "slim", None)
    if not isinstance(own, Slimming):
        raise SlimError(f"a model of create_model is due, not {type(model).__name__}")
    if not isinstance(model, VisionTransformer):
        raise SlimError(f"{type(model).__name__} has no layers of one kind: counts are fitted to plain ViTs")
    if own.method != Slimming.method:
        if methods:
            raise SlimError(f"methods={methods!r}: the model has method {own.method!r}, whose counts are searched")
        if own.at_counts((own.bound.num_patches,) * own.bound.depth) is None:
            raise SlimError(f"method {own.method!r} cannot be told how many patches to leave in every layer")
        if own.rejoins_at is not None:
            raise SlimError(f"method {own.method!r}: dropped patches come back at layer {own.rejoins_at}; not fitted")
        return {own.method: Family(own.method, own)}
    free = [name for name, cls in METHODS.items() if cls.untrained]
    wanted = (methods,) if isinstance(methods, str) and methods != "all" else methods
    names = free if methods == "all" else list(wanted) or list(USUAL)
    families = {}
    for name in names:
        if name not in free:
            raise unknown("method that needs no training", name, free)
        for fixed in METHODS[name].untrained:
            said = ", ".join(f"{key}={value}" for key, value in fixed.items())
            label = f"{name} ({said})" if said else name
            families[label] = Family(label, _bound(METHODS[name], fixed, own.bound))
    return families


def _bound(cls: type[Slimming], fixed: Mapping[str, Any], geometry: Any) -> Slimming:
    """A method on a backbone of any depth."""
    at = {"locations": (geometry.depth,)} if "locations" in cls.__dataclass_fields__ else {}
    options: dict[str, Any] = {**fixed, **at}
    return cls(**options).bind(geometry)
