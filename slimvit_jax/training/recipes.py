"""Configs that several files share, and `tiny`, which makes any of them start in seconds."""

from __future__ import annotations

import copy
from typing import Any

from slimvit_jax.training.config import add_stage, default_config


def life_on_imagenet(model: str, keep_rate: float = 0.7) -> Any:
    """Life regression from timm's weights as the paper trains it: AdamW, batch 128, an epoch for the predictor at 1e-5,
    then one for the backbone at 1e-3. (Those two rates look exchanged: configs/imagenet_deit_small_exchanged.py.)
    """
    config = default_config()
    config.name = f"imagenet_{model}"
    config.model.name = model
    config.model.options.dtype = "bfloat16"
    config.method.options = {"keep_rate": keep_rate, "locations": (4, 7, 10)}
    config.init.path = f"hf-hub:timm/{model}"
    config.data.update(name="imagenet2012", eval_split="validation", batch_size=128, num_workers=8)
    config.augment.update(kind="crop", hflip=0.5)
    config.eval.batch_size = 256
    config.checkpoint.every_steps = 2000
    config.log.every_steps = 50
    add_stage(config, "predictor", trainable="method", epochs=1.0, lr={"method": 1e-5})
    add_stage(config, "backbone", trainable="backbone", epochs=1.0, lr={"backbone": 1e-3}, warmup_epochs=0.05)
    return config


def life_from_scratch(**model_options: Any) -> Any:
    """Three stages on a small data set: dense, predictor, backbone; for a ViT of 12 layers given by its options."""
    config = default_config()
    config.model.options = {"depth": 12, "num_classes": 10, **model_options}
    config.method.options = {"keep_rate": 0.7, "locations": (4, 7, 10)}
    add_stage(config, "dense", slimmed=False, epochs=20.0, lr={"backbone": 1e-3}, warmup_epochs=1.0, clip_norm=1.0)
    add_stage(config, "predictor", trainable="method", epochs=1.0, lr={"method": 1e-2})
    add_stage(config, "backbone", trainable="backbone", epochs=3.0, lr={"backbone": 3e-4}, warmup_epochs=0.5)
    return config


def tiny(config: Any, steps: int = 2) -> Any:
    """A copy that runs in seconds on the embedded digits: 3 layers, 16 tokens, `steps` steps a stage.

    Everything else (method, augmentation, stages, optimiser) stays what the config says.
    """
    config = copy.deepcopy(config)
    options = config.model.options.to_dict()
    options |= {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 3, "num_heads": 2, "num_classes": 10}
    config.model.options = options
    method = config.method.options.to_dict()
    method.pop("budgets", None)
    if "locations" in method:
        method["locations"] = tuple(range(1, 1 + min(2, len(method["locations"]))))
    config.method.options = method
    config.init.path = ""
    config.init.options = {}
    config.data.update(name="digits", train_split="train", eval_split="test", batch_size=16, num_workers=0, options={})
    config.data.data_dir = ""
    config.eval.update(batch_size=120, every_epochs=0.0)
    config.report.enabled = False
    config.log.every_steps = 1
    for name in config.schedule:
        config.stages[name].steps = steps
    return config
