"""What can be configured: every field with its default, and the check that refuses anything else.

A config is an ml_collections.ConfigDict. A file under configs/ defines `get_config()`, starts from `default_config()`
and says only what differs. Sub-dicts named in FREE take any keys: they go as keywords to create_model, slim.load or
open_source, which check them. Everything else is checked here against the defaults, name by name and type by type.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from slimvit_jax.errors import SlimError, unknown
from slimvit_jax.training import checks

#: Fields that hold keywords for somebody else.
FREE = ("model.options", "method.options", "init.options", "data.options", "teacher.options", "labeller.options",
        "labeller.load", "model_options", "method_options", "loss_weights")  # fmt: skip

#: Fields that may differ between the runs of one workdir: they do not change what is trained.
HARMLESS = ("log", "checkpoint", "profile", "report", "eval", "mesh", "dist", "cache_dir", "data.data_dir",
            "data.num_workers")  # fmt: skip


def stage_defaults() -> ConfigDict:
    """One stage of training: who learns, for how long, how fast, by which losses."""
    return ConfigDict(
        {
            "slimmed": True,  # False: the dense model, without the method
            "trainable": "all",  # "all", "backbone", "method", or regular expressions over parameter paths
            "epochs": 1.0,
            "steps": 0,  # > 0: instead of epochs
            "lr": {"backbone": 1e-3, "method": 0.0},  # method 0: the backbone's times the method's own factor
            "lr_scale": (),  # ((regular expression, factor), ...), the first match counts
            "layer_decay": 1.0,  # learning rate factor per layer, downwards
            "lr_schedule": "cosine",  # or "constant", both after the warm-up
            "warmup_epochs": 0.0,
            "final_lr": 0.0,  # of the cosine, relative to its peak
            "weight_decay": 0.05,
            "no_decay": (
                r".*(bias|scale|gamma|cls_token|dist_token|reg_token|pos_embed|poss|attention_biases)",
            ),  # beside all 1-d ones
            "b1": 0.9,
            "b2": 0.999,
            "eps": 1e-8,
            "clip_norm": 0.0,  # 0: off
            "accumulate": 1,  # micro-batches per step
            "ema": 0.0,  # decay of the average of the weights that are stored; 0: off
            "label_smoothing": 0.0,
            "augment": True,  # False: the stage trains on images prepared as for evaluation
            "mixup": True,  # False: no mixup and no cutmix in this stage
            "model_options": {},  # on top of model.options, e.g. drop_path_rate
            "method_options": {},  # on top of method.options, e.g. keep_rate or budgets
            "loss_weights": {},  # on top of the method's own; any method can have "distillation"
        }
    )


def default_config() -> ConfigDict:
    """Every field with its default."""
    return ConfigDict(
        {
            "name": "run",
            "seed": 0,
            "model": {"name": "vit", "options": {}},
            "method": {"name": "life_regression", "options": {}},
            # weights to start from: a file or "hf-hub:timm/NAME"; fresh_method: they are a dense model's
            "init": {"path": "", "fresh_method": True, "options": {}},
            # the frozen dense model that some methods learn from: the config's own, with these options on top
            "teacher": {"options": {}},
            # a fixed network that gives further labels, for a distillation head or for LV-ViT's patches: a model of
            # this library by name, its options, its weights as `init.path`, and options of slim.load
            "labeller": {"name": "", "options": {}, "path": "", "load": {}},
            "data": {
                "name": "digits",
                "train_split": "train",
                "eval_split": "test",
                "data_dir": "",
                "batch_size": 64,  # over all devices
                "num_workers": 0,
                "repeats": 1,  # repeated augmentation
                "max_bad": 0,  # images that may be skipped as unreadable; 0: the pipeline's own limit
                "options": {},
            },
            "preprocess": {"mean": (), "std": (), "interpolation": "", "crop_pct": 0.0},  # empty: the model's own
            "augment": {
                "kind": "none",
                "interpolation": "",
                "crop_scale": (0.08, 1.0),
                "crop_ratio": (3 / 4, 4 / 3),
                "hflip": 0.0,
                "color_jitter": 0.0,
                "randaugment": "",
                "erase_prob": 0.0,
                "erase_mode": "pixel",
                "shift": 0.0,
                "rotate": 0.0,
                "scale": 0.0,
            },
            "mixup": {"mixup": 0.0, "cutmix": 0.0, "prob": 1.0, "switch_prob": 0.5},
            "schedule": (),  # stages in order, each a key of `stages`
            "stages": {},
            "eval": {"every_epochs": 0.0, "batch_size": 64, "keep_rates": (0.9, 0.8, 0.7, 0.5)},
            "report": {"enabled": True, "images": 4, "seeds": 5, "batch_size": 64},
            "log": {"every_steps": 10, "tensorboard": True},
            "checkpoint": {"every_steps": 500, "keep": 2},
            # fsdp: devices that share one copy of the arrays of at least `smallest` elements; cpu_devices: virtual,
            # 0: as the environment says
            "mesh": {"fsdp": 1, "smallest": 16384, "cpu_devices": 0},
            "profile": {
                "steps": 0,
                "start": 10,
            },  # a trace of so many steps of each stage, after so many in this process
            "cache_dir": "~/.cache/slimvit_jax/xla",  # compiled programs; "": none
            "dist": {"mode": "auto", "coordinator": "", "num_processes": 0, "process_id": -1},
        }
    )


def add_stage(config: ConfigDict, name: str, **fields: Any) -> ConfigDict:
    """Appends a stage; sub-dicts (`lr`, `model_options`, ...) are given as dicts. Returns the stage."""
    stage = stage_defaults()
    for key, value in fields.items():
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
    checks.check_values(config)
    return config


def reference(config: ConfigDict) -> dict[str, Any]:
    """Every field that a config with these stages can have, with its default."""
    defaults = default_config().to_dict()
    stages = config.get("stages")
    names = list(stages.keys()) if isinstance(stages, ConfigDict) else []
    defaults["stages"] = {name: stage_defaults().to_dict() for name in names}
    return defaults


def is_free(path: str) -> bool:
    """Whether the group of this name takes any keys."""
    return path in FREE or (path.startswith("stages.") and path.rsplit(".", 1)[-1] in FREE)


def unknown_field(field: str, siblings: Any) -> SlimError:
    """The error for a field that there is not, beside these."""
    parent, _, name = field.rpartition(".")
    if not isinstance(siblings, dict):
        return SlimError(f"config field {parent!r} is a value and has no field {name!r}")
    return unknown(f"field of config.{parent}" if parent else "config field", name, siblings)


def _check_group(group: ConfigDict, reference: dict[str, Any], path: str) -> None:
    for key in group.keys():
        if key not in reference:
            raise unknown_field(f"{path}{key}", reference)
    for key, default in reference.items():
        field = f"{path}{key}"
        if key not in group:
            raise SlimError(f"config field {field!r} is missing; its default is {default!r}")
        value = group[key]
        if isinstance(default, dict):
            if not isinstance(value, ConfigDict):
                raise SlimError(f"config field {field!r} is {value!r}; it must be a group of fields")
            if not is_free(field):
                _check_group(value, default, f"{field}.")
            continue
        with group.ignore_type():
            group[key] = checks.kind_of_field(field, default).value(f"config.{field}", value)


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


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Lines "field: old -> new" for the fields that change what is trained; both are flattened."""
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
            return {k: tuples(v) for k, v in value.items()}
        return tuple(tuples(v) for v in value) if isinstance(value, list) else value

    config = ConfigDict(tuples(plain))
    _fill(config, reference(config), "")
    return validate(config)


def _fill(group: ConfigDict, reference: Mapping[str, Any], path: str) -> None:
    """Gives `group` the fields of the reference that it lacks."""
    for key, default in reference.items():
        if key not in group:
            group[key] = ConfigDict(default) if isinstance(default, dict) else default
        elif isinstance(default, dict) and isinstance(group[key], ConfigDict) and not is_free(f"{path}{key}"):
            _fill(group[key], default, f"{path}{key}.")
