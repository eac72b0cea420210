"""Configs that several files share, and `tiny`, which makes any of them start in seconds."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

from slimvit_jax.methods import METHODS
from slimvit_jax.models import NAMED
from slimvit_jax.training.config import add_stage, default_config


def life_on_imagenet(model: str, keep_rate: float = 0.7) -> Any:
    """Life regression from timm's weights as the paper trains it: AdamW, batch 128, an epoch for the predictor at 1e-5,
    then one for the backbone at 1e-3. (Those two rates look exchanged: configs/imagenet_deit_small_exchanged.py.)
    """
    config = life_from_timm(model, keep_rate)
    add_stage(config, "predictor", trainable="method", epochs=1.0, lr={"method": 1e-5})
    add_stage(config, "backbone", trainable="backbone", epochs=1.0, lr={"backbone": 1e-3}, warmup_epochs=0.05)
    return config


def life_from_timm(model: str, keep_rate: float = 0.7) -> Any:
    """Life regression on ImageNet, from timm's weights, without stages."""
    config = default_config()
    config.name = f"imagenet_{model}"
    config.model.name = model
    config.model.options.dtype = "bfloat16"
    config.method.options = {"keep_rate": keep_rate, "locations": (4, 7, 10)}
    config.init.path = "published"
    config.data.update(name="imagenet2012", eval_split="validation", batch_size=128, num_workers=8)
    config.augment.update(kind="crop", hflip=0.5)
    config.eval.batch_size = 256
    config.checkpoint.every_steps = 2000
    config.log.every_steps = 50
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

    Unless `stage` says otherwise it is EViT's fine-tuning (finetune.sh of youweiliang/evit): 30 epochs, batch 8 x 128,
    AdamW, cosine from 2e-5 per 512 images to 2e-6, weight decay 1e-6, DeiT's augmentation, no stochastic depth (the
    release tunes in evaluation mode).
    """
    model = "deit_small_patch16_224"
    config = default_config()
    config.name = f"imagenet_{method}"
    config.model.name = model
    config.model.options.dtype = "bfloat16"
    config.method.name = method
    config.method.options = dict(options)
    config.init.path = "published"
    config.data.update(name="imagenet2012", eval_split="validation", batch_size=1024, num_workers=8, repeats=3)
    deit_augmentation(config)
    config.eval.batch_size = 256
    config.checkpoint.every_steps = 1000
    config.log.every_steps = 50
    fields = {"epochs": 30.0, "lr": {"backbone": 4e-5}, "final_lr": 0.05, "weight_decay": 1e-6, "label_smoothing": 0.1}
    add_stage(config, "finetune", **(fields | stage))
    return config


def compare_on_imagenet(method: str, options: Mapping[str, Any]) -> Any:
    """A method under the protocol of "Which Tokens to Use?" (train.py and README of JoakimHaurum/TokenReduction).

    30 epochs from timm's DeiT-S, batch 1024, AdamW, 1e-3 per 1024 images reached after 20 epochs and then by a cosine
    to 1e-5, weight decay 0.05, stochastic depth 0.1, one learning rate for everything. (There the warm-up is a part of
    the cosine's 30 epochs, so that it begins lower down; here the cosine starts after it.)
    """
    rate = {"lr": {"backbone": 1e-3}, "warmup_epochs": 20.0, "final_lr": 0.01}
    config = fine_tune_on_imagenet(method, options, weight_decay=0.05, **rate)
    config.model.options.drop_path_rate = 0.1
    config.augment.color_jitter = 0.3
    return config


def deit_augmentation(config: Any) -> None:
    """DeiT's recipe: crops, flips, RandAugment 9/0.5, colour jitter, erasing, mixup 0.8, cutmix 1."""
    config.augment.update(kind="crop", hflip=0.5, color_jitter=0.4, randaugment="rand-m9-mstd0.5-inc1", erase_prob=0.25)
    config.mixup.update(mixup=0.8, cutmix=1.0)


def _from_release(name: str, model: str, batch_size: int) -> Any:
    config = default_config()
    config.name, config.model.name, config.method.name = f"imagenet_{name}", model, ""
    config.model.options.dtype = "bfloat16"
    config.data.update(name="imagenet2012", eval_split="validation", batch_size=batch_size, num_workers=8)
    deit_augmentation(config)
    config.eval.batch_size = 256
    config.checkpoint.every_steps = 1000
    config.log.every_steps = 50
    return config


def sit_on_imagenet(name: str, model: str, drop_path_rate: float = 0.1) -> Any:
    """SiT on LV-ViT as Sense-X/SiT trains it (main.py, exp/*/train.sh).

    Feature recalibration distillation from the dense LV-ViT it starts from, whose weights in SiT's layout `init.path`
    must name; 8 x 128 images, AdamW, cosine from 2e-4 per 512 images to 1e-5 in 125 epochs, five times that for the
    recovery modules, repeated augmentation. (There they end at 1e-5 too, and 10 epochs at 1e-5 follow.)
    """
    config = _from_release(name, model, 1024)
    config.method.name = "sit"
    config.model.options.drop_path_rate = drop_path_rate
    config.data.repeats = 3
    rate = {"lr": {"backbone": 4e-4}, "final_lr": 0.025}
    add_stage(config, "finetune", epochs=125.0, weight_decay=0.05, label_smoothing=0.1, **rate)
    return config


def lvvit_on_imagenet(name: str, model: str, drop_path_rate: float = 0.1) -> Any:
    """LV-ViT by token labelling and MixToken as zihangJiang/TokenLabeling trains it.

    1024 images, AdamW, 1.6e-3 to 1e-5 in 300 epochs, an average of the weights, no mixup. Patches get their images'
    labels; `config.labeller` names a model that labels each by itself, as the release's NFNet-F6 does.
    """
    config = _from_release(name, model, 1024)
    config.model.options.drop_path_rate = drop_path_rate
    config.mixup.update(mixup=0.0, cutmix=0.0)
    rate = {"lr": {"backbone": 1.6e-3}, "final_lr": 0.00625, "warmup_epochs": 5.0}
    labels = {"model_options": {"token_labelling": True, "mix_token": True}, "label_smoothing": 0.1}
    add_stage(config, "scratch", slimmed=False, epochs=300.0, weight_decay=0.05, ema=0.99992, **rate, **labels)
    return config


def levit_on_imagenet(name: str, model: str, epochs: float) -> Any:
    """LeViT and Evo-LeViT from scratch with a labeller for their distillation heads (main_levit.py of Evo-ViT).

    8 x 256 images, AdamW, 5e-4 per 512 images, weight decay 0.025, an average of the weights, DeiT's augmentation three
    times per image. The releases distil from RegNetY-16GF, which is not in this library; the labeller here is DeiT-B,
    and `training.run(..., labeller=)` takes any other network. They clip gradients unit by unit (AGC, 0.01); here their
    norm is clipped.
    """
    config = _from_release(name, model, 2048)
    config.data.repeats = 3
    config.labeller.update(name="deit_base_patch16_224", path="published")
    rate = {"lr": {"backbone": 2e-3}, "final_lr": 0.005, "warmup_epochs": 5.0}
    rest = {"weight_decay": 0.025, "label_smoothing": 0.1, "ema": 0.99996, "clip_norm": 1.0}
    halves = {"loss_weights": {"classification": 0.5, "hard_distillation": 0.5}}
    add_stage(config, "scratch", slimmed=False, epochs=epochs, **rate, **rest, **halves)
    return config


def on_fashion_mnist(
    method: str,
    options: Mapping[str, Any],
    *,
    model: str = "vit",
    backbone: Mapping[str, Any] | None = None,
    from_scratch: bool = False,
    **stage: Any,
) -> Any:
    """A method on Fashion-MNIST at 49 tokens, minutes on two cores: a dense model first, then the method from it.

    Args:
      method: its name; "" for a dense model, or one that has its method built in, from scratch.
      options: its options.
      model: a family.
      backbone: options of the family, on top of 10 classes and one channel; None for a ViT of 12 layers.
      from_scratch: train with the method from the first step on instead.
      **stage: fields of the last stage that differ: 2 epochs at 3e-4 after a dense model, 10 at 1e-3 from scratch.
    """
    config = default_config()
    config.name = f"fashion_{method or model}"
    vit = dict(img_size=28, patch_size=4, embed_dim=96, depth=12, num_heads=3)
    config.model.name = model
    config.model.options = {"in_chans": 1, "num_classes": 10, **(vit if backbone is None else backbone)}
    config.method.name = method
    config.method.options = dict(options)
    config.data.update(name="fashion_mnist", batch_size=128)
    config.augment.update(kind="shift", shift=0.1, hflip=0.5)
    common = {"warmup_epochs": 0.5, "clip_norm": 1.0}
    if from_scratch or not method:
        fields = {"epochs": 10.0, "lr": {"backbone": 1e-3}, "slimmed": bool(method)}
        add_stage(config, "scratch", **(common | fields | stage))
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


#: Of a 28x28 image enlarged to 112x112 the convolutional stems of stride 16 leave 7x7 tokens.
FASHION_LVVIT = dict(img_size=112, embed_dim=96, depth=8, num_heads=3)
FASHION_LEVIT = dict(img_size=112, embed_dim=(64, 96, 128), depth=(2, 3, 3), num_heads=(2, 3, 4), key_dim=16)


def tiny(config: Any, steps: int = 2) -> Any:
    """A copy that runs in seconds on the embedded digits: 3 layers, 16 tokens, `steps` steps a stage.

    Everything else (method, augmentation, stages, optimiser) stays what the config says. A labeller becomes a tiny ViT
    without weights: the steps can be traced, but not run.
    """
    config = copy.deepcopy(config)
    options = _tiny_model(config.model.name, config.model.options.to_dict())
    config.model.options = options
    if config.labeller.name:
        labeller = {"patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 1}
        config.labeller.update(name="vit", options=labeller, path="", load={})
    method = config.method.options.to_dict()
    for of_other_layers in ("budgets", "preset", "prune_kept_num", "merge_kept_num"):
        method.pop(of_other_layers, None)
    fields = {field.name for field in dataclasses.fields(METHODS[config.method.name])} if config.method.name else set()
    method.pop("stage_blocks", None)
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


def _tiny_model(name: str, options: dict[str, Any]) -> dict[str, Any]:
    family = NAMED[name].family if name in NAMED else name
    if "levit" in family:  # 4x4 tokens, then 2x2; the first layers of an Evo-LeViT are dense
        depth = (2, 2) if family == "evo_levit" else (1, 1)
        small = {"img_size": 64, "embed_dim": (16, 24), "depth": depth, "num_heads": (2, 3), "key_dim": 8}
        of_every_layer = ("prune_ratio", "attn_ratio", "mlp_ratio")
        options = {key: value for key, value in options.items() if key not in of_every_layer}
    else:
        small = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 3, "num_heads": 2}
        if family == "lvvit" and options.get("p_emb") != "none":
            small |= {"img_size": 64, "patch_size": 16}
        options.pop("stage_blocks", None)
    return options | small | {"num_classes": 10}
