"""PatchMerger on ImageNet under the protocol of "Which Tokens to Use?"."""

from slimvit_jax.training.recipes import compare_on_imagenet


def get_config():
    return compare_on_imagenet("patchmerger", {"keep_rate": 0.7})
