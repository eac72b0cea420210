"""SiT-M: 8.1 GFLOPs, layers per stage (10, 4, 3, 3). The weights of lvvit_m: --config.init.path=FILE."""

from slimvit_jax.training.recipes import sit_on_imagenet


def get_config():
    return sit_on_imagenet("sit_medium", "sit_m")
