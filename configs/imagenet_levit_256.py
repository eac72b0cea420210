"""LeViT-256 on ImageNet: from scratch in 1000 epochs, distilled into its second head.

    python train.py --config=configs/imagenet_levit_256.py --workdir=runs/imagenet_levit_256

Source: main_levit.py of Evo-ViT: 8 x 256 images, AdamW, 5e-4 per 512 images, an average of the weights, DeiT's
augmentation three times per image. The releases distil from RegNetY-16GF, which is not in this library; the labeller
here is DeiT-B, and `training.run(..., labeller=)` takes any other network. They clip gradients unit by unit (AGC,
0.01); here their norm is clipped.
Losses: scratch: 0.5 classification + 0.5 hard_distillation.
Outcome: Not trained here.
"""

from slimvit_jax.training.config import add_stage, default_config


def get_config():
    config = default_config()
    config.name = "imagenet_levit_256"
    config.model.name = "levit_256"
    config.model.options = {"dtype": "bfloat16"}
    config.method.name = ""  # dense
    config.data.update(name="imagenet2012", eval_split="validation", batch_size=2048, num_workers=8, repeats=3)
    config.augment.update(kind="crop", hflip=0.5, color_jitter=0.4, randaugment="rand-m9-mstd0.5-inc1", erase_prob=0.25)
    config.mixup.update(mixup=0.8, cutmix=1.0)
    config.labeller.update(name="deit_base_patch16_224", path="published")
    config.eval.batch_size = 256
    config.checkpoint.every_steps = 1000
    config.log.every_steps = 50
    rate = {"lr": {"backbone": 2e-3}, "warmup_epochs": 5.0, "final_lr": 0.005}
    common = {"weight_decay": 0.025, "label_smoothing": 0.1, "ema": 0.99996, "clip_norm": 1.0}
    halves = {"classification": 0.5, "hard_distillation": 0.5}
    add_stage(config, "scratch", slimmed=False, epochs=1000.0, loss_weights=halves, **rate, **common)
    return config
