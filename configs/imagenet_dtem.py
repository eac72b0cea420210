"""DTEM on ImageNet: the metric alone learns, on timm's DeiT-S as it is, with r = 16.

    python train.py --config=configs/imagenet_dtem.py --workdir=runs/imagenet_dtem

Source: r is the paper's; the rest is EViT's fine-tuning (configs/imagenet_evit.py) at ten times the rate: ours.
Losses: finetune: classification.
Outcome: Not trained here.
"""

from slimvit_jax.training.config import add_stage, default_config


def get_config():
    config = default_config()
    config.name = "imagenet_dtem"
    config.model.name = "deit_small_patch16_224"
    config.model.options = {"dtype": "bfloat16"}
    config.method.name = "dtem"
    config.method.options = {"r": 16}
    config.init.path = "published"  # timm's weights
    config.data.update(name="imagenet2012", eval_split="validation", batch_size=1024, num_workers=8, repeats=3)
    config.augment.update(kind="crop", hflip=0.5, color_jitter=0.4, randaugment="rand-m9-mstd0.5-inc1", erase_prob=0.25)
    config.mixup.update(mixup=0.8, cutmix=1.0)
    config.eval.batch_size = 256
    config.checkpoint.every_steps = 1000
    config.log.every_steps = 50
    common = {"weight_decay": 1e-6, "label_smoothing": 0.1}
    add_stage(config, "finetune", trainable="method", epochs=30.0, lr={"method": 4e-4}, final_lr=0.05, **common)
    return config
