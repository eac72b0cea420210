"""Configs that several files share, and `tiny`, which makes any of them start in seconds."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

from slimvit_jax.methods import METHODS
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


def fine_tune_on_imagenet(method: str, options: Mapping[str, Any], **stage: Any) -> Any:
    """A method fine-tuned from timm's DeiT-S as its authors do: one stage, all parameters.

    Unless `stage` says otherwise it is the fine-tuning that EViT's authors use and that comparisons follow: 30 epochs,
    batch 1024, AdamW, cosine from 2e-5 per 512 images to a tenth of it, DeiT's augmentation.
    Epochs and rates of the configs built on this were not checked against the releases: look before you quote them.
    """
    model = "deit_small_patch16_224"
    config = default_config()
    config.name = f"imagenet_{method}"
    config.model.name = model
    config.model.options.dtype = "bfloat16"
    config.method.name = method
    config.method.options = dict(options)
    config.init.path = f"hf-hub:timm/{model}"
    config.data.update(name="imagenet2012", eval_split="validation", batch_size=1024, num_workers=8)
    deit_augmentation(config)
    config.eval.batch_size = 256
    config.checkpoint.every_steps = 1000
    config.log.every_steps = 50
    fields = {"epochs": 30.0, "lr": {"backbone": 4e-5}, "final_lr": 0.1, "weight_decay": 1e-6, "label_smoothing": 0.1}
    add_stage(config, "finetune", **(fields | stage))
    return config


def deit_augmentation(config: Any) -> None:
    """DeiT's recipe: crops, flips, RandAugment 9/0.5, erasing, mixup 0.8, cutmix 1."""
    config.augment.update(kind="crop", hflip=0.5, color_jitter=0.3, randaugment="rand-m9-mstd0.5-inc1", erase_prob=0.25)
    config.mixup.update(mixup=0.8, cutmix=1.0)


def on_fashion_mnist(method: str, options: Mapping[str, Any], *, from_scratch: bool = False, **stage: Any) -> Any:
    """A method on Fashion-MNIST at 49 tokens, minutes on two cores: a dense model first, then the method from it.

    Args:
      method: its name.
      options: its options.
      from_scratch: train with the method from the first step on instead.
      **stage: fields of the method's stage that differ: 2 epochs at 3e-4 after a dense model, 10 at 1e-3 from scratch.
    """
    config = default_config()
    config.name = f"fashion_{method}"
    config.model.options = dict(
        img_size=28, patch_size=4, in_chans=1, embed_dim=96, depth=12, num_heads=3, num_classes=10
    )
    config.method.name = method
    config.method.options = dict(options)
    config.data.update(name="fashion_mnist", batch_size=128)
    config.augment.update(kind="shift", shift=0.1, hflip=0.5)
    common = {"warmup_epochs": 0.5, "clip_norm": 1.0}
    if from_scratch:
        add_stage(config, "scratch", **(common | {"epochs": 10.0, "lr": {"backbone": 1e-3}} | stage))
    else:
        add_stage(config, "dense", slimmed=False, epochs=10.0, lr={"backbone": 1e-3}, **common)
        add_stage(config, "finetune", **(common | {"epochs": 2.0, "lr": {"backbone": 3e-4}} | stage))
    return config


def study_on_fashion_mnist(**model_options: Any) -> Any:
    """What benchmarks/study.py varies: a dense model, then two epochs of a method from it.

    `predictor` and `backbone` are life regression's two epochs, `finetune` is every other method's stage. As it stands,
    train.py runs the dense model followed by life regression at 0.7.
    """
    config = default_config()
    config.model.options = {"img_size": 28, "in_chans": 1, "depth": 12, "num_classes": 10, **model_options}
    config.method.options = {"keep_rate": 0.7, "locations": (4, 7, 10)}
    config.data.update(name="fashion_mnist", batch_size=128)
    config.augment.update(kind="shift", shift=0.1, hflip=0.5)
    config.eval.update(batch_size=250, every_epochs=0.0)
    config.report.enabled = False
    config.log.update(every_steps=50, tensorboard=False)
    config.checkpoint.every_steps = 400
    add_stage(config, "dense", slimmed=False, epochs=10.0, lr={"backbone": 1e-3}, warmup_epochs=1.0, clip_norm=1.0)
    add_stage(config, "predictor", trainable="method", epochs=1.0, lr={"method": 1e-2})
    add_stage(config, "backbone", trainable="backbone", epochs=1.0, lr={"backbone": 3e-4}, warmup_epochs=0.1)
    add_stage(config, "finetune", epochs=2.0, lr={"backbone": 3e-4}, warmup_epochs=0.1, clip_norm=1.0)
    config.schedule = ("dense", "predictor", "backbone")
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
    fields = {field.name for field in dataclasses.fields(METHODS[config.method.name])} if config.method.name else set()
    if "locations" in fields:  # some methods need a layer before their first location
        method["locations"] = (1, 2) if "locations" in method else (2, 3)
    if "r" in method:
        method["r"] = 2
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
