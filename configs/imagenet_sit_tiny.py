"""SiT-T: 1.0 GFLOPs, layers per stage (1, 1, 1, 11). The weights of lvvit_t: --config.init.path=FILE."""

from slimvit_jax.training.recipes import sit_on_imagenet


def get_config():
    return sit_on_imagenet("sit_tiny", "sit_t", drop_path_rate=0.0)
