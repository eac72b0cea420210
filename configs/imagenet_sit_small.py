"""SiT-S: 4.0 GFLOPs, layers per stage (9, 3, 2, 2). The weights of lvvit_s: --config.init.path=FILE."""

from slimvit_jax.training.recipes import sit_on_imagenet


def get_config():
    return sit_on_imagenet("sit_small", "sit_s")
