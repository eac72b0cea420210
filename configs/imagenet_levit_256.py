"""LeViT-256 on ImageNet: from scratch in 1000 epochs, distilled."""

from slimvit_jax.training.recipes import levit_on_imagenet


def get_config():
    return levit_on_imagenet("levit_256", "levit_256", epochs=1000.0)
