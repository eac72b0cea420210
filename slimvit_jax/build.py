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
from slimvit_jax.methods import METHODS
from slimvit_jax.models import NAMED
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
    backbone_fields = set(cls.__dataclass_fields__) - {"slim", "parent", "name", *fixed}
    method_fields = _method_fields(method)
    for option in options:
        if option not in backbone_fields | method_fields:
            owner = f"model {name!r}" + (f" with method {method!r}" if isinstance(method, str) else "")
            raise unknown(f"option of {owner}", option, sorted(backbone_fields | method_fields))
    backbone = {**defaults, **{k: v for k, v in options.items() if k in backbone_fields}, **fixed}
    backbone = cls.normalise(backbone)
    start = own_options if method == own_method else {}
    slim = _make_method(method, {**start, **{k: v for k, v in options.items() if k in method_fields}})
    return cls(slim=slim.bind(cls.geometry_of(backbone)), **backbone)


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
