"""SiT-XS: 1.5 GFLOPs, layers per stage (1, 1, 1, 13). The weights of lvvit_s: --config.init.path=FILE."""

from slimvit_jax.training.recipes import sit_on_imagenet


def get_config():
    return sit_on_imagenet("sit_xs", "sit_xs")
