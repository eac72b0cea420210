"""SiT-T on ImageNet, 1.0 GFLOPs: layers per stage (1, 1, 1, 11), distilled from lvvit_t, whose weights FILE has.

    python train.py --config=configs/imagenet_sit_tiny.py --workdir=runs/imagenet_sit_tiny --config.init.path=FILE

Source: main.py and exp/*/train.sh of Sense-X/SiT: 8 x 128 images, AdamW, cosine from 2e-4 per 512 images to 1e-5, five
times that for the recovery modules, repeated augmentation, half of the tokens after each stage. (There they end at 1e-5
too, and 10 epochs at 1e-5 follow.)
Losses: finetune: classification + 2 token_distillation + 2 distillation.
Outcome: Not trained here. SiT's paper: 80.1 %.
"""

from slimvit_jax.training.config import add_stage, default_config


def get_config():
    config = default_config()
    config.name = "imagenet_sit_tiny"
    config.model.name = "sit_t"
    config.model.options = {"dtype": "bfloat16", "drop_path_rate": 0.0}
    config.method.name = "sit"  # stages and keep rate are the model's
    config.data.update(name="imagenet2012", eval_split="validation", batch_size=1024, num_workers=8, repeats=3)
    config.augment.update(kind="crop", hflip=0.5, color_jitter=0.4, randaugment="rand-m9-mstd0.5-inc1", erase_prob=0.25)
    config.mixup.update(mixup=0.8, cutmix=1.0)
    config.eval.batch_size = 256
    config.checkpoint.every_steps = 1000
    config.log.every_steps = 50
    common = {"weight_decay": 0.05, "label_smoothing": 0.1}
    add_stage(config, "finetune", epochs=125.0, lr={"backbone": 4e-4}, final_lr=0.025, **common)
    return config
