"""Random patches on ImageNet: under EViT's fine-tuning: the baseline of every claim."""

from slimvit_jax.training.recipes import fine_tune_on_imagenet


def get_config():
    return fine_tune_on_imagenet("random", {"keep_rate": 0.7})
