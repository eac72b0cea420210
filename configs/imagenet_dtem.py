"""DTEM on ImageNet: the metric alone learns, on timm's DeiT-S as it is, with r = 16 as in the paper."""

from slimvit_jax.training.recipes import fine_tune_on_imagenet


def get_config():
    return fine_tune_on_imagenet("dtem", {"r": 16}, lr={"method": 4e-4}, trainable="method")
