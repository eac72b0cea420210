"""Which fields of a config go together, and what its keywords for others may be; checked before any long work."""

from __future__ import annotations

import re
from typing import Any

from slimvit_jax import data
from slimvit_jax.build import option_kinds
from slimvit_jax.convert import from_torch
from slimvit_jax.errors import SlimError, unknown
from slimvit_jax.keywords import keywords_of
from slimvit_jax.options import ANYTHING, Kind, NotNegative, kind_of

TRAINABLE = ("all", "backbone", "method", "head")


def kind_in_group(config: Any, group: str, key: str) -> Kind:
    """What a key may be of a group that holds keywords for somebody else; anything, where its owner does not know it.

    Raises:
      SlimError: for a model, method or data source that there is not, or an option that `slim.load` has not.
    """
    name = group.rsplit(".", 1)[-1]
    if name == "loss_weights":
        return kind_of(NotNegative)
    if group in LOADING:
        if key not in _LOAD:
            raise unknown(f"field of config.{group}", key, _LOAD)
        return _LOAD[key]
    if group == "data.options":
        kinds = data.option_kinds(config.data.name)
    elif group == "labeller.options":
        kinds = option_kinds(config.labeller.name)[0] if config.labeller.name else {}
    else:
        own, of_method = option_kinds(config.model.name, config.method.name or None)
        kinds = of_method if name == "method_options" or group == "method.options" else own
    return kinds.get(key, ANYTHING)


def _read_names(value: Any) -> tuple[str, ...]:
    """Names in a text, between commas, or in a tuple."""
    return kind_of(tuple[str, ...]).read(value.replace(" ", "").split(",") if isinstance(value, str) else value)


_NAMES = Kind("be names, in one text or a tuple", _read_names)
#: Groups that hold options of slim.load.
LOADING = ("init.options", "labeller.load")
_LOAD: dict[str, Kind] = {**keywords_of(from_torch), "init_missing": _NAMES, "ignore": _NAMES}
del _LOAD["rng"]  # training has a seed


def check_values(config: Any) -> None:
    """Raises SlimError for the first fields that do not go together; each is of its kind already."""
    if not config.schedule:
        raise SlimError("config.schedule is empty: it must name at least one stage of config.stages")
    for name in config.schedule:
        if name not in config.stages:
            raise unknown("stage in config.schedule", name, config.stages.keys())
    if len(set(config.schedule)) < len(config.schedule):
        raise SlimError(f"config.schedule={config.schedule!r} names a stage twice")
    for name in config.schedule:
        if not re.fullmatch(r"[A-Za-z0-9_\-]+", name):
            raise SlimError(f"stage name {name!r} must be made of letters, digits, '_' and '-': it names files")
        _check_stage(config.stages[name], f"stages.{name}.", bool(config.method.name))
    slimmed = [config.stages[name].slimmed for name in config.schedule]
    if sorted(slimmed) != slimmed:
        raise SlimError(f"config.schedule={config.schedule!r} has a dense stage (slimmed=False) after a slimmed one")


def _check_stage(stage: Any, path: str, has_method: bool) -> None:
    if stage.steps == 0 and stage.epochs == 0:
        raise SlimError(f"config fields '{path}epochs' and '{path}steps' are both 0: the stage would train nothing")
    if stage.slimmed and not has_method:
        raise SlimError(f"config field '{path}slimmed' is True, but config.method.name is empty")
    patterns = () if isinstance(stage.trainable, str) else stage.trainable
    if not patterns and stage.trainable not in TRAINABLE:
        raise unknown(f"value of config.{path}trainable", stage.trainable, TRAINABLE)
    if stage.trainable == "method" and not stage.slimmed:
        raise SlimError(f"config field '{path}trainable' is 'method', but the stage is dense (slimmed=False)")
    for pattern in (*patterns, *(stage.no_decay or ()), *(entry[0] for entry in stage.lr_scale)):
        try:
            re.compile(pattern)
        except re.error as error:
            raise SlimError(f"{pattern!r} in config.{path[:-1]} is no regular expression: {error}") from error
