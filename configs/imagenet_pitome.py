"""PiToMe on ImageNet: the release's ratio 0.925 on DeiT-S. No training needed; an epoch to get used to it."""

from slimvit_jax.training.recipes import fine_tune_on_imagenet


def get_config():
    return fine_tune_on_imagenet("pitome", {"ratio": 0.925}, epochs=1.0)
