"""EViT on ImageNet: DeiT-S fine-tuned as its authors do, keep rate 0.7 at layers 4, 7 and 10.

    python train.py --config=configs/imagenet_evit.py --workdir=runs/imagenet_evit

Source: finetune.sh of youweiliang/evit: 30 epochs, batch 8 x 128, AdamW, cosine from 2e-5 per 512 images to 2e-6,
DeiT's augmentation, no stochastic depth (the release tunes in evaluation mode); the keep rate is 0.7 throughout, as
there.
Losses: finetune: classification.
Outcome: Not trained here.
"""

from slimvit_jax.training.config import add_stage, default_config


def get_config():
    config = default_config()
    config.name = "imagenet_evit"
    config.model.name = "deit_small_patch16_224"
    config.model.options = {"dtype": "bfloat16"}
    config.method.name = "evit"
    config.method.options = {"keep_rate": 0.7}
    config.init.path = "published"  # timm's weights
    config.data.update(name="imagenet2012", eval_split="validation", batch_size=1024, num_workers=8, repeats=3)
    config.augment.update(kind="crop", hflip=0.5, color_jitter=0.4, randaugment="rand-m9-mstd0.5-inc1", erase_prob=0.25)
    config.mixup.update(mixup=0.8, cutmix=1.0)
    config.eval.batch_size = 256
    config.checkpoint.every_steps = 1000
    config.log.every_steps = 50
    common = {"weight_decay": 1e-6, "label_smoothing": 0.1}
    add_stage(config, "finetune", epochs=30.0, lr={"backbone": 4e-5}, final_lr=0.05, **common)
    return config
