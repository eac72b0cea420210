"""benchmarks/study.py at the scale "micro": Fashion-MNIST at 49 tokens, width 64, for two CPU cores."""

from slimvit_jax.training.recipes import study_on_fashion_mnist


def get_config():
    config = study_on_fashion_mnist(patch_size=4, embed_dim=64, num_heads=2)
    config.name = "study_micro"
    config.mesh.cpu_devices = 1
    return config
