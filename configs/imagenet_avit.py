"""A-ViT on ImageNet: 100 epochs from timm's DeiT-S.

    python train.py --config=configs/imagenet_avit.py --workdir=runs/imagenet_avit

Source: the gate and the rates that NVlabs/A-ViT gives for A-ViT-S: 4 x 96 images, 3e-4 per 512 of them. (A-ViT-T:
gate_center 30, 5e-4, 4 x 128 images.)
Losses: finetune: classification + 0.0005 ponder + 0.001 distribution_prior.
Outcome: Not trained here.
"""

from slimvit_jax.training.config import add_stage, default_config


def get_config():
    config = default_config()
    config.name = "imagenet_avit"
    config.model.name = "deit_small_patch16_224"
    config.model.options = {"dtype": "bfloat16", "drop_path_rate": 0.1}
    config.method.name = "avit"
    config.method.options = {"gate_scale": 10.0, "gate_center": 75.0}
    config.init.path = "published"  # timm's weights
    config.data.update(name="imagenet2012", eval_split="validation", batch_size=384, num_workers=8, repeats=3)
    config.augment.update(kind="crop", hflip=0.5, color_jitter=0.4, randaugment="rand-m9-mstd0.5-inc1", erase_prob=0.25)
    config.mixup.update(mixup=0.8, cutmix=1.0)
    config.eval.batch_size = 256
    config.checkpoint.every_steps = 1000
    config.log.every_steps = 50
    common = {"weight_decay": 0.05, "label_smoothing": 0.1}
    add_stage(config, "finetune", epochs=100.0, lr={"backbone": 2.25e-4}, warmup_epochs=5.0, final_lr=0.044, **common)
    return config
