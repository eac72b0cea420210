"""LeViT on Fashion-MNIST from 7x7 tokens on: minutes on two cores."""

from slimvit_jax.training.recipes import FASHION_LEVIT, on_fashion_mnist


def get_config():
    return on_fashion_mnist("", {}, model="levit", backbone=FASHION_LEVIT, lr={"backbone": 3e-3})
