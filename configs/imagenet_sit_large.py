"""SiT-L: 34.4 GFLOPs at 288 pixels, layers per stage (10, 4, 3, 7). The weights of lvvit_l: --config.init.path=FILE."""

from slimvit_jax.training.recipes import sit_on_imagenet


def get_config():
    config = sit_on_imagenet("sit_large", "sit_l", drop_path_rate=0.3)
    config.augment.randaugment = "rand-n3-m9-mstd0.5-inc1"
    return config
