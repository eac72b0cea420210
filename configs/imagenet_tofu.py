"""ToFu on ImageNet: ratio 0.925 on DeiT-S, as PiToMe's. No training needed; an epoch to get used to it."""

from slimvit_jax.training.recipes import fine_tune_on_imagenet


def get_config():
    return fine_tune_on_imagenet("tofu", {"ratio": 0.925}, epochs=1.0)
