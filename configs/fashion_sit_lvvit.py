"""SiT on LV-ViT on Fashion-MNIST at 49 tokens: the teacher by token labelling first. Minutes on two cores."""

from slimvit_jax.training.recipes import FASHION_LVVIT, on_fashion_mnist


def get_config():
    options = {"keep_rate": 0.5, "stage_blocks": (3, 2, 2, 1)}
    config = on_fashion_mnist("sit", options, model="lvvit", backbone=FASHION_LVVIT)
    config.name = "fashion_sit_lvvit"
    config.stages.dense.epochs = 6.0
    config.stages.dense.model_options.update({"token_labelling": True, "mix_token": True})
    return config
