"""A-ViT on ImageNet: 100 epochs from DeiT-S with the gate and the rates that NVlabs/A-ViT gives for A-ViT-S.

4 x 96 images, 3e-4 per 512 of them. (A-ViT-T: gate_center 30, 5e-4, 4 x 128 images.)
"""

from slimvit_jax.training.recipes import fine_tune_on_imagenet


def get_config():
    rate = {"lr": {"backbone": 2.25e-4}, "final_lr": 0.044, "warmup_epochs": 5.0, "weight_decay": 0.05}
    config = fine_tune_on_imagenet("avit", {"gate_scale": 10.0, "gate_center": 75.0}, epochs=100.0, **rate)
    config.data.batch_size = 384
    config.model.options.drop_path_rate = 0.1
    return config
