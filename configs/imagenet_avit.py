"""A-ViT on ImageNet: the release's gate; 100 epochs of fine-tuning."""

from slimvit_jax.training.recipes import fine_tune_on_imagenet


def get_config():
    return fine_tune_on_imagenet("avit", {"gate_scale": 10.0, "gate_center": 30.0}, epochs=100.0, lr={"backbone": 1e-4})
