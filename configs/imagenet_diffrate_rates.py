"""DiffRate's counts learned on ImageNet for timm's DeiT-S at 2.9 GFLOPs, the backbone frozen.

    python train.py --config=configs/imagenet_diffrate_rates.py --workdir=runs/imagenet_diffrate_rates

Source: the README of OpenGVLab/DiffRate: 3 epochs of 4 x 256 images, the counts alone, 0.01 to 0.001. Augmentation is
DeiT's, stochastic depth 0.1. 2.9 GFLOPs of the whole model leave 0.626 of the layers' multiply-adds.
Losses: finetune: classification + 100 flops.
Outcome: Not trained here.
"""

from slimvit_jax.training.config import add_stage, default_config


def get_config():
    config = default_config()
    config.name = "imagenet_diffrate_rates"
    config.model.name = "deit_small_patch16_224"
    config.model.options = {"dtype": "bfloat16", "drop_path_rate": 0.1}
    config.method.name = "diffrate"
    config.method.options = {"target_flops": 0.626}
    config.init.path = "published"  # timm's weights
    config.data.update(name="imagenet2012", eval_split="validation", batch_size=1024, num_workers=8, repeats=3)
    config.augment.update(kind="crop", hflip=0.5, color_jitter=0.4, randaugment="rand-m9-mstd0.5-inc1", erase_prob=0.25)
    config.mixup.update(mixup=0.8, cutmix=1.0)
    config.eval.batch_size = 256
    config.checkpoint.every_steps = 1000
    config.log.every_steps = 50
    common = {"weight_decay": 0.0, "label_smoothing": 0.1}
    add_stage(config, "finetune", trainable="method", epochs=3.0, lr={"method": 0.01}, final_lr=0.1, **common)
    return config
