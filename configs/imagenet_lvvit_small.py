"""LV-ViT-S on ImageNet by token labelling and MixToken: what SiT starts from and learns from.

    python train.py --config=configs/imagenet_lvvit_small.py --workdir=runs/imagenet_lvvit_small

Source: zihangJiang/TokenLabeling: 1024 images, AdamW, 1.6e-3 to 1e-5 in 300 epochs, an average of the weights, no
mixup. There an NFNet-F6 labels each patch by itself; here patches get their images' labels, unless `config.labeller`
names a model.
Losses: scratch: classification + 0.5 token_labels.
Outcome: Not trained here.
"""

from slimvit_jax.training.config import add_stage, default_config


def get_config():
    config = default_config()
    config.name = "imagenet_lvvit_small"
    config.model.name = "lvvit_s"
    config.model.options = {"dtype": "bfloat16", "drop_path_rate": 0.1}
    config.method.name = ""  # dense
    config.data.update(name="imagenet2012", eval_split="validation", batch_size=1024, num_workers=8)
    config.augment.update(kind="crop", hflip=0.5, color_jitter=0.4, randaugment="rand-m9-mstd0.5-inc1", erase_prob=0.25)
    config.eval.batch_size = 256
    config.checkpoint.every_steps = 1000
    config.log.every_steps = 50
    rate = {"lr": {"backbone": 1.6e-3}, "warmup_epochs": 5.0, "final_lr": 0.00625}
    common = {"weight_decay": 0.05, "label_smoothing": 0.1, "ema": 0.99992}
    labels = {"token_labelling": True, "mix_token": True}
    add_stage(config, "scratch", slimmed=False, epochs=300.0, model_options=labels, **rate, **common)
    return config
