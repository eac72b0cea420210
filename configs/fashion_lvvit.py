"""LV-ViT by token labelling and MixToken on Fashion-MNIST at 49 tokens: minutes on two cores."""

from slimvit_jax.training.recipes import FASHION_LVVIT, on_fashion_mnist


def get_config():
    labels = {"token_labelling": True, "mix_token": True}
    return on_fashion_mnist("", {}, model="lvvit", backbone=FASHION_LVVIT, epochs=6.0, model_options=labels)
