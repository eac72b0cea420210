"""Cropr on Fashion-MNIST at 49 tokens: minutes on two cores."""

from slimvit_jax.training.recipes import on_fashion_mnist


def get_config():
    return on_fashion_mnist("cropr", {"pruning_rate": 3})
