"""Fashion-MNIST at 28x28 with patches of 4: 49 tokens. Images from Debian's dataset-fashion-mnist, or data.data_dir."""

from slimvit_jax.training.recipes import life_from_scratch


def get_config():
    config = life_from_scratch(img_size=28, patch_size=4, in_chans=1, embed_dim=96, num_heads=3)
    config.name = "fashion_mnist_49"
    config.data.update(name="fashion_mnist", batch_size=128)
    config.augment.update(kind="shift", shift=0.1, hflip=0.5)
    return config
