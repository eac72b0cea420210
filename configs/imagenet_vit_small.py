"""ViT-S on ImageNet by life regression from timm's weights, with the paper's values."""

from slimvit_jax.training.recipes import life_on_imagenet


def get_config():
    return life_on_imagenet("vit_small_patch16_224")
