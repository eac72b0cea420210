"""EViT on ImageNet: 30 epochs from DeiT-S, as its authors fine-tune."""

from slimvit_jax.training.recipes import fine_tune_on_imagenet


def get_config():
    return fine_tune_on_imagenet("evit", {"keep_rate": 0.7})
