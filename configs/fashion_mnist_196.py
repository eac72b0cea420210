"""Fashion-MNIST at 28x28 with patches of 2: 196 tokens, as a ViT of 224 pixels has."""

from slimvit_jax.training.recipes import life_from_scratch


def get_config():
    config = life_from_scratch(img_size=28, patch_size=2, in_chans=1, embed_dim=96, num_heads=3)
    config.name = "fashion_mnist_196"
    config.data.update(name="fashion_mnist", batch_size=128)
    config.augment.update(kind="shift", shift=0.1, hflip=0.5)
    return config
