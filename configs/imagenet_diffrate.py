"""DiffRate on ImageNet: published counts, 2.9 GFLOPs on DeiT-S, no training needed; an epoch to get used to them."""

from slimvit_jax.training.recipes import fine_tune_on_imagenet


def get_config():
    return fine_tune_on_imagenet("diffrate", {"preset": "2.9"}, epochs=1.0)
