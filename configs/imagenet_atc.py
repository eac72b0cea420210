"""ATC on ImageNet under its release's protocol, that of "Which Tokens to Use?".

    python train.py --config=configs/imagenet_atc.py --workdir=runs/imagenet_atc

Source: train_deit.py and README of JoakimHaurum/ATC, complete linkage, proportional attention, keep rate 0.7 at layers
4, 7 and 10: 30 epochs, batch 1024, AdamW, 1e-3 per 1024 images reached after 20 epochs and then by a cosine to 1e-5.
There the warm-up is a part of the cosine's 30 epochs, so that it begins lower down; here the cosine starts after it.
Losses: finetune: classification.
Outcome: Not trained here.
"""

from slimvit_jax.training.config import add_stage, default_config


def get_config():
    config = default_config()
    config.name = "imagenet_atc"
    config.model.name = "deit_small_patch16_224"
    config.model.options = {"dtype": "bfloat16", "drop_path_rate": 0.1}
    config.method.name = "atc"
    config.method.options = {"keep_rate": 0.7, "linkage": "complete"}
    config.init.path = "published"  # timm's weights
    config.data.update(name="imagenet2012", eval_split="validation", batch_size=1024, num_workers=8, repeats=3)
    config.augment.update(kind="crop", hflip=0.5, color_jitter=0.3, randaugment="rand-m9-mstd0.5-inc1", erase_prob=0.25)
    config.mixup.update(mixup=0.8, cutmix=1.0)
    config.eval.batch_size = 256
    config.checkpoint.every_steps = 1000
    config.log.every_steps = 50
    common = {"weight_decay": 0.05, "label_smoothing": 0.1}
    add_stage(config, "finetune", epochs=30.0, lr={"backbone": 1e-3}, warmup_epochs=20.0, final_lr=0.01, **common)
    return config
