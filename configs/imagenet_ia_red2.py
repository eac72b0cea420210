"""IA-RED2 on ImageNet: 30 epochs from timm's DeiT-S, all groups at once.

    python train.py --config=configs/imagenet_ia_red2.py --workdir=runs/imagenet_ia_red2

Source: keep rate 0.7 in front of each third of the layers, the default. Epochs and rates are EViT's
(configs/imagenet_evit.py), ten times as fast for the interpreters; those of the authors were not at hand.
`methods.ia_red2.curriculum` gives the paper's stages.
Losses: finetune: classification + policy + 0.01 entropy.
Outcome: Not trained here.
"""

from slimvit_jax.training.config import add_stage, default_config


def get_config():
    config = default_config()
    config.name = "imagenet_ia_red2"
    config.model.name = "deit_small_patch16_224"
    config.model.options = {"dtype": "bfloat16"}
    config.method.name = "ia_red2"
    config.method.options = {"keep_rate": 0.7}
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
