"""DiffRate on ImageNet: published counts, 2.9 GFLOPs on DeiT-S. An epoch to get used to them.

    python train.py --config=configs/imagenet_diffrate.py --workdir=runs/imagenet_diffrate

Source: the method needs no training. The counts are compression_rate.json's of OpenGVLab/DiffRate; the epoch, with the
values of EViT's fine-tuning (configs/imagenet_evit.py), is ours.
Losses: finetune: classification.
Outcome: Not trained here.
"""

from slimvit_jax.training.config import add_stage, default_config


def get_config():
    config = default_config()
    config.name = "imagenet_diffrate"
    config.model.name = "deit_small_patch16_224"
    config.model.options = {"dtype": "bfloat16"}
    config.method.name = "diffrate"
    config.method.options = {"preset": "2.9"}
    config.init.path = "published"  # timm's weights
    config.data.update(name="imagenet2012", eval_split="validation", batch_size=1024, num_workers=8, repeats=3)
    config.augment.update(kind="crop", hflip=0.5, color_jitter=0.4, randaugment="rand-m9-mstd0.5-inc1", erase_prob=0.25)
    config.mixup.update(mixup=0.8, cutmix=1.0)
    config.eval.batch_size = 256
    config.checkpoint.every_steps = 1000
    config.log.every_steps = 50
    common = {"weight_decay": 1e-6, "label_smoothing": 0.1}
    add_stage(config, "finetune", epochs=1.0, lr={"backbone": 4e-5}, final_lr=0.05, **common)
    return config
