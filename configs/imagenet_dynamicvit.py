"""DynamicViT on ImageNet: 30 epochs from timm's DeiT-S, predictors a hundred times as fast as the rest.

    python train.py --config=configs/imagenet_dynamicvit.py --workdir=runs/imagenet_dynamicvit

Source: main_dynamic_vit.py of raoyongming/DynamicViT: 8 x 96 images, 5e-4 per 512 of them. There the backbone rests for
five epochs and then learns at one rate until the cosine falls below it, class token and position embedding never; here
all of it follows the cosine from the first step.
Losses: finetune: classification + 2 ratio + 0.5 distillation + 0.5 token_distillation.
Outcome: Not trained here.
"""

from slimvit_jax.training.config import add_stage, default_config


def get_config():
    config = default_config()
    config.name = "imagenet_dynamicvit"
    config.model.name = "deit_small_patch16_224"
    config.model.options = {"dtype": "bfloat16"}
    config.method.name = "dynamicvit"
    config.method.options = {"keep_rate": 0.7}
    config.init.path = "published"  # timm's weights
    config.data.update(name="imagenet2012", eval_split="validation", batch_size=768, num_workers=8, repeats=3)
    config.augment.update(kind="crop", hflip=0.5, color_jitter=0.4, randaugment="rand-m9-mstd0.5-inc1", erase_prob=0.25)
    config.mixup.update(mixup=0.8, cutmix=1.0)
    config.eval.batch_size = 256
    config.checkpoint.every_steps = 1000
    config.log.every_steps = 50
    common = {"weight_decay": 0.05, "label_smoothing": 0.1}
    add_stage(config, "finetune", epochs=30.0, lr={"backbone": 7.5e-6, "method": 7.5e-4}, final_lr=0.013, **common)
    return config
