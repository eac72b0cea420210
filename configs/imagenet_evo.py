"""Evo-ViT on ImageNet: DeiT-S from scratch, pruning from the first step.

    python train.py --config=configs/imagenet_evo.py --workdir=runs/imagenet_evo

Source: DeiT's recipe of 300 epochs, as Evo-ViT is trained: 5e-4 per 512 images, weight decay 0.05. Half of the patches
are computed in the stages that begin at layers 5 and 9, the default.
Losses: finetune: classification + class_token.
Outcome: Not trained here.
"""

from slimvit_jax.training.config import add_stage, default_config


def get_config():
    config = default_config()
    config.name = "imagenet_evo"
    config.model.name = "deit_small_patch16_224"
    config.model.options = {"dtype": "bfloat16", "drop_path_rate": 0.1}
    config.method.name = "evo"
    config.method.options = {"keep_rate": 0.5}
    config.data.update(name="imagenet2012", eval_split="validation", batch_size=1024, num_workers=8, repeats=3)
    config.augment.update(kind="crop", hflip=0.5, color_jitter=0.4, randaugment="rand-m9-mstd0.5-inc1", erase_prob=0.25)
    config.mixup.update(mixup=0.8, cutmix=1.0)
    config.eval.batch_size = 256
    config.checkpoint.every_steps = 1000
    config.log.every_steps = 50
    common = {"weight_decay": 0.05, "label_smoothing": 0.1}
    add_stage(config, "finetune", epochs=300.0, lr={"backbone": 1e-3}, warmup_epochs=5.0, final_lr=0.01, **common)
    return config
