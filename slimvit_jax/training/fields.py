"""Every field of a config: its default and, where the default's type does not say it, what it may be.

A field is a plain default, of whose type its values are; or (default, annotation), see `slimvit_jax.options`; or a
group of fields. Empty groups hold keywords for somebody else.
"""

from __future__ import annotations

from typing import Any, Literal

from slimvit_jax.options import Count, DropRate, Fraction, Kind, Natural, NotNegative, Positive, Seed, Share, kind_of

#: One stage of training: who learns, for how long, how fast, by which losses.
STAGE: dict[str, Any] = {
    "slimmed": True,  # False: the dense model, without the method
    # "all", "backbone", "method", "head" (the classifier alone), or regular expressions over parameter paths
    "trainable": ("all", str | tuple[str, ...]),
    "epochs": (1.0, NotNegative),
    "steps": (0, Natural),  # > 0: instead of epochs
    # method 0: the backbone's times the method's own factor
    "lr": {"backbone": (1e-3, NotNegative), "method": (0.0, NotNegative)},
    # ((regular expression, factor), ...), the first match counts
    "lr_scale": ((), tuple[tuple[str, NotNegative], ...]),
    "layer_decay": (1.0, Share),  # learning rate factor per layer, downwards
    "lr_schedule": ("cosine", Literal["cosine", "constant"]),  # both after the warm-up
    "warmup_epochs": (0.0, NotNegative),
    "final_lr": (0.0, Fraction),  # of the cosine, relative to its peak
    "weight_decay": (0.05, NotNegative),
    # expressions over parameter paths, beside all 1-d ones; None: what the model declares (`no_weight_decay`)
    "no_decay": (None, tuple[str, ...] | None),
    "b1": (0.9, DropRate),
    "b2": (0.999, DropRate),
    "eps": (1e-8, Positive),
    "clip_norm": (0.0, NotNegative),  # 0: off
    "accumulate": (1, Count),  # micro-batches per step
    "ema": (0.0, DropRate),  # decay of the average of the weights that are stored; 0: off
    "label_smoothing": (0.0, DropRate),
    "augment": True,  # False: the stage trains on images prepared as for evaluation
    "mixup": True,  # False: no mixup and no cutmix in this stage
    "model_options": {},  # on top of model.options, e.g. drop_path_rate
    "method_options": {},  # on top of method.options, e.g. keep_rate or budgets
    "loss_weights": {},  # on top of the method's own; any method can have "distillation"
}

CONFIG: dict[str, Any] = {
    "name": "run",
    "seed": (0, Seed),
    "model": {"name": "vit", "options": {}},
    "method": {"name": "life_regression", "options": {}},
    # weights to start from: a file, "hf-hub:timm/NAME", or "published": what timm publishes for model.name;
    # fresh_method: they are a dense model's
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
        "batch_size": (64, Count),  # over all devices
        "num_workers": (0, Natural),
        "repeats": (1, Count),  # repeated augmentation
        "max_bad": (0, Natural),  # images that may be skipped as unreadable; 0: the pipeline's own limit
        "options": {},
    },
    "preprocess": {  # empty: the model's own
        "mean": ((), tuple[float, ...]),
        "std": ((), tuple[Positive, ...]),
        "interpolation": "",
        "crop_pct": (0.0, Fraction),
    },
    "augment": {
        "kind": "none",
        "interpolation": "",
        "crop_scale": ((0.08, 1.0), tuple[Positive, Positive]),
        "crop_ratio": ((3 / 4, 4 / 3), tuple[Positive, Positive]),
        "hflip": (0.0, Fraction),
        "color_jitter": 0.0,
        "randaugment": "",
        "erase_prob": (0.0, Fraction),
        "erase_mode": "pixel",
        "shift": 0.0,
        "rotate": 0.0,
        "scale": 0.0,
    },
    "mixup": {
        "mixup": (0.0, NotNegative),
        "cutmix": (0.0, NotNegative),
        "prob": (1.0, Fraction),
        "switch_prob": (0.5, Fraction),
    },
    "schedule": ((), tuple[str, ...]),  # stages in order, each a key of `stages`
    "stages": {},
    "eval": {
        "every_epochs": (0.0, NotNegative),
        "batch_size": (64, Count),
        "keep_rates": ((0.9, 0.8, 0.7, 0.5), tuple[Share, ...]),
    },
    "report": {
        "enabled": True,
        "images": (4, Natural),
        "seeds": (5, Count),
        "batch_size": (64, Count),
        "rounds": (15, Count),
    },
    "log": {"every_steps": (10, Count), "tensorboard": True},
    "checkpoint": {"every_steps": (500, Count), "keep": (2, Count)},
    # fsdp: devices that share one copy of the arrays of at least `smallest` elements; cpu_devices: virtual,
    # 0: as the environment says
    "mesh": {"fsdp": (1, Count), "smallest": (16384, Count), "cpu_devices": (0, Natural)},
    # a trace of so many steps of each stage, after so many in this process
    "profile": {"steps": (0, Natural), "start": (10, Natural)},
    "cache_dir": "~/.cache/slimvit_jax/xla",  # compiled programs; "": none
    "dist": {
        "mode": ("auto", Literal["auto", "on", "off"]),
        "coordinator": "",
        "num_processes": (0, Natural),
        "process_id": -1,
    },
}


def defaults(fields: dict[str, Any]) -> dict[str, Any]:
    """The groups with the defaults alone."""
    return {name: defaults(field) if isinstance(field, dict) else default_of(field) for name, field in fields.items()}


def default_of(field: Any) -> Any:
    """The default of a field that is no group."""
    return field[0] if isinstance(field, tuple) else field


def kind_of_field(field: Any) -> Kind:
    """What a field that is no group may be."""
    return kind_of(field[1] if isinstance(field, tuple) else type(field))
