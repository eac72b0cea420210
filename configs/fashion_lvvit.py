"""LV-ViT by token labelling and MixToken on Fashion-MNIST at 49 tokens, for two CPU cores.

    python train.py --config=configs/fashion_lvvit.py --workdir=runs/fashion_lvvit

Source: stages and rates are ours, since no paper trains on these images. The convolutional stem of stride 16 leaves 7x7
tokens of images enlarged to 112x112. Patches get their images' labels.
Losses: scratch: classification + 0.5 token_labels.
Outcome: Not trained here.
"""

from slimvit_jax.training.config import add_stage, default_config


def get_config():
    config = default_config()
    config.name = "fashion_lvvit"
    config.model.name = "lvvit"
    config.model.options = {
        "img_size": 112,
        "in_chans": 1,
        "embed_dim": 96,
        "depth": 8,
        "num_heads": 3,
        "num_classes": 10,
    }
    config.method.name = ""  # dense
    config.data.update(name="fashion_mnist", batch_size=128)
    config.augment.update(kind="shift", shift=0.1, hflip=0.5)  # a tenth of the side; no mixup
    common = {"weight_decay": 0.05, "warmup_epochs": 0.5, "clip_norm": 1.0}
    labels = {"token_labelling": True, "mix_token": True}
    add_stage(config, "scratch", slimmed=False, epochs=6.0, lr={"backbone": 1e-3}, model_options=labels, **common)
    return config
