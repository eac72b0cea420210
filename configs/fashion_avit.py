"""A-ViT on Fashion-MNIST at 49 tokens: minutes on two cores.

The gate is fitted to this model: its untuned halting scores then sum to about 0.5 over the layers. With its release's
for DeiT-T, 30, they are close to 0 in all but the last layers, and the study's model ends 25 points lower
(docs/results.md, "A-ViT's gate_center").
"""

from slimvit_jax.training.recipes import on_fashion_mnist


def get_config():
    return on_fashion_mnist("avit", {"gate_scale": 10.0, "gate_center": 10.0})
