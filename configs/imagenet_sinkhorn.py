"""Sinkhorn on ImageNet: under EViT's fine-tuning, the fresh cluster centres faster."""

from slimvit_jax.training.recipes import fine_tune_on_imagenet


def get_config():
    return fine_tune_on_imagenet("sinkhorn", {"keep_rate": 0.7}, lr={"backbone": 4e-5, "method": 1e-3})
