"""ToMe on ImageNet: r = 13 on DeiT-S. The method needs no training; an epoch lets the weights get used to it."""

from slimvit_jax.training.recipes import fine_tune_on_imagenet


def get_config():
    return fine_tune_on_imagenet("tome", {"r": 13}, epochs=1.0)
