"""Top-k by class attention on ImageNet, the plainest ranking, under the protocol of "Which Tokens to Use?"."""

from slimvit_jax.training.recipes import compare_on_imagenet


def get_config():
    return compare_on_imagenet("topk", {"keep_rate": 0.7})
