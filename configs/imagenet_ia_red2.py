"""IA-RED2 on ImageNet: 30 epochs, all groups at once; `methods.ia_red2.curriculum` gives the paper's stages.

Epochs and rates are EViT's, ten times as fast for the interpreters; those of the authors were not at hand.
"""

from slimvit_jax.training.recipes import fine_tune_on_imagenet


def get_config():
    return fine_tune_on_imagenet("ia_red2", {"keep_rate": 0.7}, lr={"backbone": 4e-5, "method": 4e-4})
