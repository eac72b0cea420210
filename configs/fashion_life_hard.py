"""Life regression on Fashion-MNIST at 49 tokens with what the study found better than the paper's training.

Training masks exactly what inference drops, with predictor and backbone in one stage; docs/results.md has the figures,
fashion_mnist_49.py the paper's stages.
"""

from slimvit_jax.training.recipes import on_fashion_mnist


def get_config():
    options = {"keep_rate": 0.7, "locations": (4, 7, 10), "hard": True}
    config = on_fashion_mnist("life_regression", options, lr={"backbone": 3e-4, "method": 1e-2}, warmup_epochs=0.1)
    config.name = "fashion_life_hard"
    return config
