"""What can be configured: every field with its default, and the check that refuses anything else.

A config is an ml_collections.ConfigDict. A file under configs/ defines `get_config()`, starts from `default_config()`
and spells out its recipe. Sub-dicts named in FREE take any keys: they go as keywords to create_model, slim.load or
open_source. Everything else is a field of `fields`, which says what it may be.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from slimvit_jax.errors import SlimError, unknown
from slimvit_jax.models import check_weights_of
from slimvit_jax.training import checks, fields

#: Fields that hold keywords for somebody else.
FREE = ("model.options", "method.options", "init.options", "data.options", "teacher.options", "labeller.options",
        "labeller.load", "model_options", "method_options", "loss_weights")  # fmt: skip

#: Fields that may differ between the runs of one workdir: they do not change what is trained.
HARMLESS = ("log", "checkpoint", "profile", "report", "eval", "mesh", "dist", "cache_dir", "data.data_dir",
            "data.num_workers")  # fmt: skip


#: The default for all models in the records of older runs; each declares its own now.
_FORMER_NO_DECAY = [".*(bias|scale|gamma|cls_token|dist_token|reg_token|pos_embed|poss|attention_biases)"]


def stage_defaults() -> ConfigDict:
    """One stage of training."""
    return ConfigDict(fields.defaults(fields.STAGE))


def default_config() -> ConfigDict:
    """Every field with its default."""
    return ConfigDict(fields.defaults(fields.CONFIG))


def add_stage(config: ConfigDict, name: str, **values: Any) -> ConfigDict:
    """Appends a stage; sub-dicts (`lr`, `model_options`, ...) are given as dicts. Returns the stage."""
    stage = stage_defaults()
    for key, value in values.items():
        if isinstance(value, Mapping) and isinstance(stage.get(key), ConfigDict):
            stage[key].update(value)
            continue
        with stage.ignore_type():  # `trainable` is text or expressions; validation looks at all of them
            stage[key] = value
    config.stages[name] = stage
    config.schedule = (*config.schedule, name)
    return stage


def validate(config: ConfigDict) -> ConfigDict:
    """Checks names, types and values; returns the config, every value in the form that its field stores.

    Raises:
      SlimError: naming the first wrong field, its value and the choices.
    """
    _check_group(config, reference(config), "")
    _check_free(config, config, "")
    for group, model in (("init", config.model.name), ("labeller", config.labeller.name)):
        check_weights_of(model, config[group].path, f"config.{group}.path")
    checks.check_values(config)
    return config


def reference(config: ConfigDict) -> dict[str, Any]:
    """Every field that a config with these stages can have, see `fields`."""
    stages = config.get("stages")
    names = list(stages.keys()) if isinstance(stages, ConfigDict) else []
    return {**fields.CONFIG, "stages": dict.fromkeys(names, fields.STAGE)}


def is_free(path: str) -> bool:
    """Whether the group of this name takes any keys."""
    return path in FREE or (path.startswith("stages.") and path.rsplit(".", 1)[-1] in FREE)


def unknown_field(field: str, siblings: Any) -> SlimError:
    """The error for a field that there is not, beside these."""
    parent, _, name = field.rpartition(".")
    if not isinstance(siblings, dict):
        return SlimError(f"config field {parent!r} is a value and has no field {name!r}")
    return unknown(f"field of config.{parent}" if parent else "config field", name, siblings)


def _check_group(group: ConfigDict, reference: Mapping[str, Any], path: str) -> None:
    for key in group.keys():
        if key not in reference:
            raise unknown_field(f"{path}{key}", reference)
    for key, field in reference.items():
        name = f"{path}{key}"
        if key not in group:
            raise SlimError(f"config field {name!r} is missing; its default is {fields.default_of(field)!r}")
        value = group[key]
        if not isinstance(field, dict):
            with group.ignore_type():
                group[key] = fields.kind_of_field(field).value(f"config.{name}", value)
        elif not isinstance(value, ConfigDict):
            raise SlimError(f"config field {name!r} is {value!r}; it must be a group of fields")
        elif not is_free(name):
            _check_group(value, field, f"{name}.")


def _check_free(config: ConfigDict, group: ConfigDict, path: str) -> None:
    for key in group.keys():
        if isinstance(group[key], ConfigDict) and not is_free(path):
            _check_free(config, group[key], f"{path}.{key}" if path else key)
        elif is_free(path):  # stored as given: the owner puts it into its form
            checks.kind_in_group(config, path, key).value(f"config.{path}.{key}", group[key])


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a.b": value}; empty groups are left out; tuples become lists, as JSON has them."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, (Mapping, ConfigDict)):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = _plain(value)
    return flat


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def _current(key: str, value: Any) -> Any:
    """What a value of an earlier version is now: the backbone's own rule was once written out in every config."""
    return None if key == "no_decay" and _plain(value) == _FORMER_NO_DECAY else value


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Lines "field: old -> new" for the fields that change what is trained; both flattened, `old` of any version."""
    old = {field: _current(field.rpartition(".")[2], value) for field, value in old.items()}
    lines = []
    for field in sorted(old.keys() | new.keys()):
        harmless = any(field == h or field.startswith(h + ".") for h in HARMLESS)
        if not harmless and old.get(field) != new.get(field):
            lines.append(f"{field}: {old.get(field, 'absent')!r} -> {new.get(field, 'absent')!r}")
    return lines


def from_dict(plain: Mapping[str, Any]) -> ConfigDict:
    """A config from the JSON of a workdir; lists become tuples again.

    Fields that were added since it was written get their defaults; one that is not there any more is a SlimError.
    """

    def tuples(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {k: _current(k, tuples(v)) for k, v in value.items()}
        return tuple(tuples(v) for v in value) if isinstance(value, list) else value

    config = ConfigDict(tuples(plain))
    _fill(config, reference(config), "")
    return validate(config)


def _fill(group: ConfigDict, reference: Mapping[str, Any], path: str) -> None:
    """Gives `group` the fields of the reference that it lacks."""
    for key, field in reference.items():
        if key not in group:
            group[key] = ConfigDict(fields.defaults(field)) if isinstance(field, dict) else fields.default_of(field)
        elif isinstance(field, dict) and isinstance(group[key], ConfigDict) and not is_free(f"{path}{key}"):
            _fill(group[key], field, f"{path}{key}.")
