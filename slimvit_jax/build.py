"""`create_model`: names and options to a model, with every impossible combination refused here."""

from __future__ import annotations

import dataclasses
from typing import Any

from slimvit_jax.backbones.base import Backbone
from slimvit_jax.backbones.evo_levit import EvoLeViT
from slimvit_jax.backbones.levit import LeViT
from slimvit_jax.backbones.lvvit import LVViT
from slimvit_jax.backbones.vit import VisionTransformer
from slimvit_jax.errors import SlimError, unknown
from slimvit_jax.images import Preprocess
from slimvit_jax.methods import METHODS
from slimvit_jax.models import NAMED, UNNAMED
from slimvit_jax.slimming import Slimming

#: Families for any size: name to (class, options that make the family).
FAMILIES: dict[str, tuple[type[Backbone], dict[str, Any]]] = {
    "vit": (VisionTransformer, {}),
    "deit_distilled": (VisionTransformer, {"distilled": True}),
    "lvvit": (LVViT, {}),
    "levit": (LeViT, {}),
    "levit_distilled": (LeViT, {"distilled": True}),
    "evo_levit": (EvoLeViT, {}),
}


def list_models() -> list[str]:
    """All model names: the families for any size first, then the named models."""
    return [*FAMILIES, *sorted(NAMED)]


def list_methods() -> list[str]:
    """All method names, sorted."""
    return sorted(METHODS)


def create_model(name: str, method: str | Slimming | None = None, **options: Any) -> Backbone:
    """A model ready for `init` and `apply`.

    Args:
      name: a named model ("deit_small_patch16_224") or a family for any size ("vit", "lvvit", "levit").
      method: a method's name, its options among `options`; or a method object; or None for the dense model (for
        names such as "sit_s", which imply a method: for that method; `Slimming()` is always the dense model).
      **options: of the backbone (timm's keyword names; they override the named model's) and of the method.

    Returns:
      A Flax linen module.

    Raises:
      SlimError: for an unknown name or option, or a combination that makes no sense.
    """
    family, defaults, own_method, own_options = _resolve(name)
    cls, fixed = FAMILIES[family]
    method, options = cls.translate(method, options)
    method = own_method if method is None else method
    backbone_fields = set(cls.__dataclass_fields__) - {"slim", "preprocess", "parent", "name", *fixed}
    method_fields = _method_fields(method)
    for option in options:
        if option not in backbone_fields | method_fields:
            owner = f"model {name!r}" + (f" with method {method!r}" if isinstance(method, str) else "")
            raise unknown(f"option of {owner}", option, sorted(backbone_fields | method_fields))
    backbone = {**defaults, **{k: v for k, v in options.items() if k in backbone_fields}, **fixed}
    backbone = cls.normalise(backbone)
    start = own_options if method == own_method else {}
    slim = _make_method(method, {**start, **{k: v for k, v in options.items() if k in method_fields}})
    preprocess = NAMED[name].preprocess if name in NAMED else UNNAMED
    return cls(slim=slim.bind(cls.geometry_of(backbone)), preprocess=preprocess, **backbone)


def transform_for(model: str | Backbone) -> Preprocess:
    """How an image becomes the model's input: what training, evaluation, prediction and exports use.

    Args:
      model: from `create_model`, at whatever img_size and in_chans; or a model's name, at its own.

    Returns:
      A callable: a path, a PIL image or uint8 pixels to (H, W, C) float32. Its fields (mean, std, crop_pct, ...) are
      timm's for a named model; others take the whole image in [-1, 1].

    Raises:
      SlimError: an unknown name, or a model of other than 1 or 3 channels.
    """
    if isinstance(model, str):
        model = create_model(model)
    elif not isinstance(model, Backbone):
        raise SlimError(f"transform_for takes a model or the name of one, not {type(model).__name__}")
    return model.preprocess.fit(model.img_size, model.in_chans)


def _resolve(name: str) -> tuple[str, dict[str, Any], str | None, dict[str, Any]]:
    """Family, its options, and the method that the name implies with its options."""
    if name in FAMILIES:
        return name, {}, None, {}
    if name not in NAMED:
        raise unknown("model", name, list_models())
    named = NAMED[name]
    return named.family, dict(named.kwargs), named.method, dict(named.method_kwargs)


def _method_fields(method: str | Slimming | None) -> set[str]:
    if not isinstance(method, str):
        return set()
    if method not in METHODS:
        raise unknown("method", method, list_methods())
    return {field.name for field in dataclasses.fields(METHODS[method])} - {"geometry", "parent", "name"}


def _make_method(method: str | Slimming | None, options: dict[str, Any]) -> Slimming:
    if method is None:
        return Slimming()
    if isinstance(method, Slimming):
        return method
    if not isinstance(method, str):
        raise SlimError(f"method={method!r} must be a method's name, a method object or None")
    return METHODS[method](**options)
