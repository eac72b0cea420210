"""Which values of config fields make sense; checked before any long work."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from slimvit_jax.errors import SlimError, unknown

Check = tuple[Callable[[Any], bool], str]

_POSITIVE: Check = (lambda v: v > 0, "must be positive")
_NOT_NEGATIVE: Check = (lambda v: v >= 0, "must not be negative")
_SHARE: Check = (lambda v: 0 <= v <= 1, "must lie in [0, 1]")
_BELOW_ONE: Check = (lambda v: 0 <= v < 1, "must lie in [0, 1)")
_FACTOR: Check = (lambda v: 0 < v <= 1, "must lie in (0, 1]")

_FIELDS: dict[str, Check] = {
    "seed": _NOT_NEGATIVE,
    "data.batch_size": _POSITIVE,
    "data.num_workers": _NOT_NEGATIVE,
    "data.repeats": _POSITIVE,
    "data.max_bad": _NOT_NEGATIVE,
    "preprocess.crop_pct": _SHARE,
    "mixup.mixup": _NOT_NEGATIVE,
    "mixup.cutmix": _NOT_NEGATIVE,
    "mixup.prob": _SHARE,
    "mixup.switch_prob": _SHARE,
    "eval.every_epochs": _NOT_NEGATIVE,
    "eval.batch_size": _POSITIVE,
    "report.images": _NOT_NEGATIVE,
    "report.seeds": _POSITIVE,
    "report.batch_size": _POSITIVE,
    "log.every_steps": _POSITIVE,
    "checkpoint.every_steps": _POSITIVE,
    "checkpoint.keep": _POSITIVE,
    "mesh.fsdp": _POSITIVE,
    "mesh.smallest": _POSITIVE,
    "mesh.cpu_devices": _NOT_NEGATIVE,
    "profile.steps": _NOT_NEGATIVE,
    "profile.start": _NOT_NEGATIVE,
    "dist.num_processes": _NOT_NEGATIVE,
}

_STAGE_FIELDS: dict[str, Check] = {
    "epochs": _NOT_NEGATIVE,
    "steps": _NOT_NEGATIVE,
    "lr.backbone": _NOT_NEGATIVE,
    "lr.method": _NOT_NEGATIVE,
    "layer_decay": _FACTOR,
    "warmup_epochs": _NOT_NEGATIVE,
    "final_lr": _SHARE,
    "weight_decay": _NOT_NEGATIVE,
    "b1": _BELOW_ONE,
    "b2": _BELOW_ONE,
    "eps": _POSITIVE,
    "clip_norm": _NOT_NEGATIVE,
    "accumulate": _POSITIVE,
    "ema": _BELOW_ONE,
    "label_smoothing": _BELOW_ONE,
}

TRAINABLE = ("all", "backbone", "method")


def check_values(config: Any) -> None:
    """Raises SlimError for the first field whose value makes no sense; names and types are right already."""
    _check_fields(config, _FIELDS, "")
    if config.dist.mode not in ("auto", "on", "off"):
        raise unknown("value of config.dist.mode", config.dist.mode, ("auto", "on", "off"))
    if not config.schedule:
        raise SlimError("config.schedule is empty: it must name at least one stage of config.stages")
    for name in config.schedule:
        if name not in config.stages:
            raise unknown("stage in config.schedule", name, config.stages.keys())
    if len(set(config.schedule)) < len(config.schedule):
        raise SlimError(f"config.schedule={config.schedule!r} names a stage twice")
    for rate in config.eval.keep_rates:
        if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 < rate <= 1:
            raise SlimError(f"config field 'eval.keep_rates' has {rate!r}; a keep rate must lie in (0, 1]")
    for name in config.schedule:
        if not re.fullmatch(r"[A-Za-z0-9_\-]+", name):
            raise SlimError(f"stage name {name!r} must be made of letters, digits, '_' and '-': it names files")
        _check_stage(config.stages[name], f"stages.{name}.", bool(config.method.name))
    slimmed = [config.stages[name].slimmed for name in config.schedule]
    if sorted(slimmed) != slimmed:
        raise SlimError(f"config.schedule={config.schedule!r} has a dense stage (slimmed=False) after a slimmed one")


def _check_stage(stage: Any, path: str, has_method: bool) -> None:
    _check_fields(stage, _STAGE_FIELDS, path)
    if stage.steps == 0 and stage.epochs == 0:
        raise SlimError(f"config fields '{path}epochs' and '{path}steps' are both 0: the stage would train nothing")
    if stage.lr_schedule not in ("cosine", "constant"):
        raise unknown(f"value of config.{path}lr_schedule", stage.lr_schedule, ("cosine", "constant"))
    if stage.slimmed and not has_method:
        raise SlimError(f"config field '{path}slimmed' is True, but config.method.name is empty")
    if isinstance(stage.trainable, str):
        if stage.trainable not in TRAINABLE:
            raise unknown(f"value of config.{path}trainable", stage.trainable, TRAINABLE)
        if stage.trainable == "method" and not stage.slimmed:
            raise SlimError(f"config field '{path}trainable' is 'method', but the stage is dense (slimmed=False)")
        patterns: tuple[Any, ...] = ()
    else:
        patterns = stage.trainable
    scales = stage.lr_scale
    for entry in scales:
        if not (isinstance(entry, (tuple, list)) and len(entry) == 2 and isinstance(entry[1], (int, float))):
            raise SlimError(f"config field '{path}lr_scale' has {entry!r}; it must hold (regular expression, factor)")
    for pattern in (*patterns, *stage.no_decay, *(entry[0] for entry in scales)):
        try:
            re.compile(pattern)
        except (re.error, TypeError) as error:
            raise SlimError(f"{pattern!r} in config.{path[:-1]} is no regular expression: {error}") from error


def _check_fields(group: Any, table: dict[str, Check], path: str) -> None:
    for field, (holds, text) in table.items():
        value = group
        for part in field.split("."):
            value = value[part]
        if not holds(value):
            raise SlimError(f"config field '{path}{field}' is {value!r}; it {text}")
