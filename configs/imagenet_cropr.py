"""Cropr on ImageNet: DeiT-S with the paper's 8 patches a block and last-layer fusion, fine-tuned as EViT is."""

from slimvit_jax.training.recipes import fine_tune_on_imagenet


def get_config():
    return fine_tune_on_imagenet("cropr", {"pruning_rate": 8}, lr={"backbone": 4e-5, "method": 4e-4})
