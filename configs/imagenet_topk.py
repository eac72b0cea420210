"""Top-k by class attention on ImageNet: under EViT's fine-tuning: the baseline of every method that ranks."""

from slimvit_jax.training.recipes import fine_tune_on_imagenet


def get_config():
    return fine_tune_on_imagenet("topk", {"keep_rate": 0.7})
