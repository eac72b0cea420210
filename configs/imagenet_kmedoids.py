"""K-Medoids on ImageNet: under EViT's fine-tuning."""

from slimvit_jax.training.recipes import fine_tune_on_imagenet


def get_config():
    return fine_tune_on_imagenet("kmedoids", {"keep_rate": 0.7})
