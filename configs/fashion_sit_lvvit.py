"""SiT on LV-ViT on Fashion-MNIST at 49 tokens, for two CPU cores: the teacher by token labelling first.

    python train.py --config=configs/fashion_sit_lvvit.py --workdir=runs/fashion_sit_lvvit

Source: stages and rates are ours, since no paper trains on these images. Half of the tokens stay after each stage, as
in the paper; the convolutional stem of stride 16 leaves 7x7 tokens of images enlarged to 112x112.
Losses: dense: classification + 0.5 token_labels. finetune: classification + 2 token_distillation + 2 distillation.
Outcome: Not trained here.
"""

from slimvit_jax.training.config import add_stage, default_config


def get_config():
    config = default_config()
    config.name = "fashion_sit_lvvit"
    config.model.name = "lvvit"
    config.model.options = {
        "img_size": 112,
        "in_chans": 1,
        "embed_dim": 96,
        "depth": 8,
        "num_heads": 3,
        "num_classes": 10,
    }
    config.method.name = "sit"
    config.method.options = {"keep_rate": 0.5, "stage_blocks": (3, 2, 2, 1)}
    config.data.update(name="fashion_mnist", batch_size=128)
    config.augment.update(kind="shift", shift=0.1, hflip=0.5)  # a tenth of the side; no mixup
    common = {"weight_decay": 0.05, "warmup_epochs": 0.5, "clip_norm": 1.0}
    labels = {"token_labelling": True, "mix_token": True}
    add_stage(config, "dense", slimmed=False, epochs=6.0, lr={"backbone": 1e-3}, model_options=labels, **common)
    add_stage(config, "finetune", epochs=2.0, lr={"backbone": 3e-4}, **common)
    return config
