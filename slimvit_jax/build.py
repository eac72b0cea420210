"""`create_model`: names and options to a model, with every impossible combination refused here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slimvit_jax import options
from slimvit_jax.backbones import FAMILIES
from slimvit_jax.backbones.base import Backbone
from slimvit_jax.errors import SlimError, unknown
from slimvit_jax.images import Preprocess
from slimvit_jax.methods import METHODS
from slimvit_jax.methods.dropping import Dropping
from slimvit_jax.models import NAMED
from slimvit_jax.named import UNNAMED
from slimvit_jax.slimming import Slimming
from slimvit_jax.text import choose_method


def list_models() -> list[str]:
    """All model names: the families for any size first, then the named models."""
    return [*FAMILIES, *sorted(NAMED)]


def list_methods() -> list[str]:
    """All method names, sorted."""
    return sorted(METHODS)


def create_model(name: str, method: str | Slimming | None = None, **keywords: Any) -> Backbone:
    """A model ready for `init` and `apply`.

    Args:
      name: a named model ("deit_small_patch16_224") or a family for any size ("vit", "lvvit", "levit").
      method: a method's name, its options among `options`; or a method object; or None for the dense model (for
        names such as "sit_s", which imply a method: for that method; `Slimming()` is always the dense model).
      **keywords: options of the backbone (timm's keyword names; they override the named model's) and of the method.

    Returns:
      A Flax linen module.

    Raises:
      SlimError: for an unknown name or option, or a combination that makes no sense.
    """
    return assemble(name, method, keywords)


def create_from(
    name: str, method: str | Slimming | None, of_model: Mapping[str, Any], of_method: Mapping[str, Any]
) -> Backbone:
    """`create_model` with the options apart, as configs have them.

    Raises:
      SlimError: also for an option that is given twice or is not the method's.
    """
    kinds = option_kinds(name, method)[1]
    for option in of_method:
        if option in of_model:
            raise SlimError(f"{option} is given twice, as an option of the model and of the method")
        if option not in kinds:
            raise unknown(f"option of method {method!r}", option, kinds)
    return assemble(name, method, {**of_model, **of_method})


def assemble(name: str, method: str | Slimming | None, keywords: Mapping[str, Any]) -> Backbone:
    """`create_model` with the options as a mapping, whatever their names are."""
    family, defaults, own_method, own_options = _resolve(name)
    cls, fixed = FAMILIES[family]
    method, given = cls.translate(own_method if method is None else method, dict(keywords))
    own, of_method = option_kinds(name, method)
    for option in given:
        if option not in own and option not in of_method:
            raise _unknown_option(name, method, option, [*own, *of_method])
    backbone = cls.normalise({**defaults, **{k: v for k, v in given.items() if k in own}, **fixed})
    start = own_options if method == own_method else {}
    slim = _make_method(method, {**start, **{k: v for k, v in given.items() if k in of_method}})
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


def option_kinds(
    name: str, method: str | Slimming | None = None
) -> tuple[Mapping[str, options.Kind], Mapping[str, options.Kind]]:
    """The options of a model and of a method by name, and what each may be.

    Raises:
      SlimError: for an unknown model or method, or one option of both.
    """
    family, _, own_method, _ = _resolve(name)
    cls, fixed = FAMILIES[family]
    backbone = {option: kind for option, kind in options.kinds_of(cls).items() if option not in fixed}
    method = own_method if method is None else method
    if not isinstance(method, str):
        return backbone, {}
    if method not in METHODS:
        raise unknown("method", method, list_methods())
    of_method = options.kinds_of(METHODS[method])
    if both := backbone.keys() & of_method.keys():
        raise SlimError(f"{', '.join(sorted(both))}: an option of model {name!r} and of method {method!r}; rename one")
    return backbone, of_method


def _unknown_option(name: str, method: str | Slimming | None, option: str, choices: list[str]) -> SlimError:
    owners = [own for own in list_methods() if option in options.kinds_of(METHODS[own])]
    if owners and isinstance(method, Slimming):
        return SlimError(f"{option} is an option of the method: give it to {type(method).__name__}(...) itself")
    if owners and method is None:
        return SlimError(f"{option} is an option of methods: add {choose_method()}, one of {', '.join(owners)}")
    if isinstance(method, str) and option in options.kinds_of(Dropping):
        fate, those = METHODS[method].facts.grid, ", ".join(owners)
        return SlimError(
            f"{option} is for methods that only drop patches ({those}); those of method {method!r} are {fate}"
        )
    owner = f"model {name!r}" + (f" with method {method!r}" if isinstance(method, str) else "")
    return unknown(f"option of {owner}", option, choices)


def _resolve(name: str) -> tuple[str, dict[str, Any], str | None, dict[str, Any]]:
    """Family, its options, and the method that the name implies with its options."""
    if not isinstance(name, str):
        raise unknown("model", name, list_models())
    if name in FAMILIES:
        return name, {}, None, {}
    if name not in NAMED:
        raise unknown("model", name, list_models())
    named = NAMED[name]
    return named.family, dict(named.kwargs), named.method, dict(named.method_kwargs)


def _make_method(method: str | Slimming | None, options: dict[str, Any]) -> Slimming:
    if method is None:
        return Slimming()
    if isinstance(method, Slimming):
        return method
    if not isinstance(method, str):
        raise SlimError(f"method={method!r} must be a method's name, a method object or None")
    return METHODS[method](**options)
