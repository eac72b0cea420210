"""MCTF on ImageNet: r = 16 in all layers but the first, 30 epochs from timm's DeiT-S (the paper's DeiT-S at 2.6 G).

    python train.py --config=configs/imagenet_mctf.py --workdir=runs/imagenet_mctf

Source: the fine-tuning of the release (README.md, main.py): both passes, no mixup, rate 3e-5 for 1,024 images, 1e-6 in
the end. Its ten further epochs at that rate are left out.
Losses: finetune: classification + second_classification + 3 consistency.
Outcome: Not trained here.
"""

from slimvit_jax.training.config import add_stage, default_config


def get_config():
    config = default_config()
    config.name = "imagenet_mctf"
    config.model.name = "deit_small_patch16_224"
    config.model.options = {"dtype": "bfloat16", "drop_path_rate": 0.1}
    config.method.name = "mctf"
    config.method.options = {"r": 16, "consistency_r": tuple(range(8))}
    config.init.path = "published"  # timm's weights
    config.data.update(name="imagenet2012", eval_split="validation", batch_size=1024, num_workers=8, repeats=3)
    config.augment.update(kind="crop", hflip=0.5, color_jitter=0.3, randaugment="rand-m9-mstd0.5-inc1", erase_prob=0.25)
    config.eval.batch_size = 256
    config.checkpoint.every_steps = 1000
    config.log.every_steps = 50
    common = {"weight_decay": 0.05, "label_smoothing": 0.1}
    add_stage(config, "finetune", epochs=30.0, lr={"backbone": 3e-5}, final_lr=1 / 30, **common)
    return config
