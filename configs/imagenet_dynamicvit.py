"""DynamicViT on ImageNet: 30 epochs from DeiT-S, the predictors learning a hundred times as fast as the backbone."""

from slimvit_jax.training.recipes import fine_tune_on_imagenet


def get_config():
    return fine_tune_on_imagenet("dynamicvit", {"keep_rate": 0.7}, lr={"backbone": 1e-5, "method": 1e-3})
