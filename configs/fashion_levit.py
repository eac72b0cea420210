"""LeViT on Fashion-MNIST from 7x7 tokens on, for two CPU cores: from scratch, dense.

    python train.py --config=configs/fashion_levit.py --workdir=runs/fashion_levit

Source: stages and rates are ours, since no paper trains on these images. The convolutional stem of stride 16 leaves 7x7
tokens of images enlarged to 112x112. There is no labeller, and one head.
Losses: scratch: classification.
Outcome: Not trained here.
"""

from slimvit_jax.training.config import add_stage, default_config


def get_config():
    config = default_config()
    config.name = "fashion_levit"
    config.model.name = "levit"
    shape = {"embed_dim": (64, 96, 128), "depth": (2, 3, 3), "num_heads": (2, 3, 4), "key_dim": 16}
    config.model.options = {"img_size": 112, "in_chans": 1, "num_classes": 10, **shape}
    config.method.name = ""  # dense
    config.data.update(name="fashion_mnist", batch_size=128)
    config.augment.update(kind="shift", shift=0.1, hflip=0.5)  # a tenth of the side; no mixup
    common = {"weight_decay": 0.05, "warmup_epochs": 0.5, "clip_norm": 1.0}
    add_stage(config, "scratch", slimmed=False, epochs=10.0, lr={"backbone": 3e-3}, **common)
    return config
