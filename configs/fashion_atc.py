"""ATC on Fashion-MNIST at 49 tokens, for two CPU cores: a dense ViT, then the method.

    python train.py --config=configs/fashion_atc.py --workdir=runs/fashion_atc

Source: stages and rates are ours, since no paper trains on these images. Options are those of imagenet_atc.py.
Losses: dense: classification. finetune: classification.
Outcome: Not trained here.
"""

from slimvit_jax.training.config import add_stage, default_config


def get_config():
    config = default_config()
    config.name = "fashion_atc"
    config.model.name = "vit"
    shape = {"embed_dim": 96, "depth": 12, "num_heads": 3}
    config.model.options = {"img_size": 28, "patch_size": 4, "in_chans": 1, "num_classes": 10, **shape}
    config.method.name = "atc"
    config.method.options = {"keep_rate": 0.7, "linkage": "complete"}
    config.data.update(name="fashion_mnist", batch_size=128)
    config.augment.update(kind="shift", shift=0.1, hflip=0.5)  # a tenth of the side; no mixup
    common = {"weight_decay": 0.05, "warmup_epochs": 0.5, "clip_norm": 1.0}
    add_stage(config, "dense", slimmed=False, epochs=10.0, lr={"backbone": 1e-3}, **common)
    add_stage(config, "finetune", epochs=2.0, lr={"backbone": 3e-4}, **common)
    return config
