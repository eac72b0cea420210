"""MCTF on ImageNet: r = 16 in all layers but the first, 30 epochs from timm's DeiT-S (the paper's DeiT-S at 2.6 G)."""

from slimvit_jax.training.recipes import fine_tune_on_imagenet


def get_config():
    return fine_tune_on_imagenet("mctf", {"r": 16})
