"""SiT on DeiT-S on ImageNet: 125 epochs with feature recalibration distillation.

    python train.py --config=configs/imagenet_sit.py --workdir=runs/imagenet_sit

Source: 2e-4 per 512 images to 1e-5, as main.py of Sense-X/SiT has for LV-ViT. Half of the tokens stay after layers 4, 7
and 10, the default. The recovery modules learn five times as fast; the warm-up is ours.
Losses: finetune: classification + 2 token_distillation + 2 distillation.
Outcome: Not trained here.
"""

from slimvit_jax.training.config import add_stage, default_config


def get_config():
    config = default_config()
    config.name = "imagenet_sit"
    config.model.name = "deit_small_patch16_224"
    config.model.options = {"dtype": "bfloat16", "drop_path_rate": 0.1}
    config.method.name = "sit"
    config.method.options = {"keep_rate": 0.5}
    config.init.path = "published"  # timm's weights
    config.data.update(name="imagenet2012", eval_split="validation", batch_size=1024, num_workers=8, repeats=3)
    config.augment.update(kind="crop", hflip=0.5, color_jitter=0.4, randaugment="rand-m9-mstd0.5-inc1", erase_prob=0.25)
    config.mixup.update(mixup=0.8, cutmix=1.0)
    config.eval.batch_size = 256
    config.checkpoint.every_steps = 1000
    config.log.every_steps = 50
    common = {"weight_decay": 0.05, "label_smoothing": 0.1}
    add_stage(config, "finetune", epochs=125.0, lr={"backbone": 4e-4}, warmup_epochs=5.0, final_lr=0.025, **common)
    return config
