"""Cropr on ImageNet: DeiT-S with the paper's 8 patches a block and last-layer fusion.

    python train.py --config=configs/imagenet_cropr.py --workdir=runs/imagenet_cropr

Source: 8 patches a block are the paper's; fine-tuned as EViT is (configs/imagenet_evit.py), with ten times the rate for
what is Cropr's own: ours.
Losses: finetune: classification + auxiliary.
Outcome: Not trained here.
"""

from slimvit_jax.training.config import add_stage, default_config


def get_config():
    config = default_config()
    config.name = "imagenet_cropr"
    config.model.name = "deit_small_patch16_224"
    config.model.options = {"dtype": "bfloat16"}
    config.method.name = "cropr"
    config.method.options = {"pruning_rate": 8}
    config.init.path = "published"  # timm's weights
    config.data.update(name="imagenet2012", eval_split="validation", batch_size=1024, num_workers=8, repeats=3)
    config.augment.update(kind="crop", hflip=0.5, color_jitter=0.4, randaugment="rand-m9-mstd0.5-inc1", erase_prob=0.25)
    config.mixup.update(mixup=0.8, cutmix=1.0)
    config.eval.batch_size = 256
    config.checkpoint.every_steps = 1000
    config.log.every_steps = 50
    common = {"weight_decay": 1e-6, "label_smoothing": 0.1}
    add_stage(config, "finetune", epochs=30.0, lr={"backbone": 4e-5, "method": 4e-4}, final_lr=0.05, **common)
    return config
