"""Random patches on ImageNet, the baseline of every claim, under the protocol of "Which Tokens to Use?"."""

from slimvit_jax.training.recipes import compare_on_imagenet


def get_config():
    return compare_on_imagenet("random", {"keep_rate": 0.7})
