"""imagenet_deit_small with its two learning rates exchanged: 1e-3 for the fresh predictor, 1e-5 for the backbone."""

from slimvit_jax.training.recipes import life_on_imagenet


def get_config():
    config = life_on_imagenet("deit_small_patch16_224")
    config.name = "imagenet_deit_small_exchanged"
    config.stages.predictor.lr.method = 1e-3
    config.stages.backbone.lr.backbone = 1e-5
    return config
