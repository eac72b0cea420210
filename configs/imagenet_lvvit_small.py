"""LV-ViT-S on ImageNet by token labelling: what SiT starts from and learns from."""

from slimvit_jax.training.recipes import lvvit_on_imagenet


def get_config():
    return lvvit_on_imagenet("lvvit_small", "lvvit_s")
