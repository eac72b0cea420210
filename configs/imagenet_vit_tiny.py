"""ViT-T on ImageNet by life regression from timm's weights, with the paper's values.

    python train.py --config=configs/imagenet_vit_tiny.py --workdir=runs/imagenet_vit_tiny

Source: the life regression paper: AdamW, batch 128, an epoch for the predictor at 1e-5, then one for the backbone at
1e-3. (Those two rates look exchanged: configs/imagenet_deit_small_exchanged.py.) Weight decay, augmentation, warm-up
and bfloat16 are ours; the paper names none of them.
Losses: predictor: classification. backbone: classification.
Outcome: Not trained here. The paper's table II: 73.6 %.
"""

from slimvit_jax.training.config import add_stage, default_config


def get_config():
    config = default_config()
    config.name = "imagenet_vit_tiny_patch16_224"
    config.model.name = "vit_tiny_patch16_224"
    config.model.options = {"dtype": "bfloat16"}
    config.method.name = "life_regression"
    config.method.options = {"keep_rate": 0.7, "locations": (4, 7, 10)}
    config.init.path = "published"  # timm's weights
    config.data.update(name="imagenet2012", eval_split="validation", batch_size=128, num_workers=8)
    config.augment.update(kind="crop", hflip=0.5)  # no mixup
    config.eval.batch_size = 256
    config.checkpoint.every_steps = 2000
    config.log.every_steps = 50
    add_stage(config, "predictor", trainable="method", epochs=1.0, lr={"method": 1e-5}, weight_decay=0.05)
    backbone = {"lr": {"backbone": 1e-3}, "weight_decay": 0.05, "warmup_epochs": 0.05}
    add_stage(config, "backbone", trainable="backbone", epochs=1.0, **backbone)
    return config
