"""Evo-ViT on Fashion-MNIST at 49 tokens, for two CPU cores: from scratch, pruning from the first step.

    python train.py --config=configs/fashion_evo.py --workdir=runs/fashion_evo

Source: stages and rates are ours, since no paper trains on these images. Half of the patches are computed in the stages
that begin at layers 5 and 9, the default.
Losses: scratch: classification + class_token.
Outcome: Not trained at this width; results/study_micro has Evo-ViT on a model 64 wide, fine-tuned from a dense one
(configs/study_fashion.py), docs/results.md its figures.
"""

from slimvit_jax.training.config import add_stage, default_config


def get_config():
    config = default_config()
    config.name = "fashion_evo"
    config.model.name = "vit"
    shape = {"embed_dim": 96, "depth": 12, "num_heads": 3}
    config.model.options = {"img_size": 28, "patch_size": 4, "in_chans": 1, "num_classes": 10, **shape}
    config.method.name = "evo"
    config.method.options = {"keep_rate": 0.5}
    config.data.update(name="fashion_mnist", batch_size=128)
    config.augment.update(kind="shift", shift=0.1, hflip=0.5)  # a tenth of the side; no mixup
    common = {"weight_decay": 0.05, "warmup_epochs": 0.5, "clip_norm": 1.0}
    add_stage(config, "scratch", epochs=10.0, lr={"backbone": 1e-3}, **common)
    return config
