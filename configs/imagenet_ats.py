"""ATS on ImageNet: under EViT's fine-tuning, as the broadest comparison of token reduction."""

from slimvit_jax.training.recipes import fine_tune_on_imagenet


def get_config():
    return fine_tune_on_imagenet("ats", {"keep_rate": 0.7})
