"""SiT on ImageNet: 125 epochs at 2e-4 per 512 images with feature recalibration distillation."""

from slimvit_jax.training.recipes import fine_tune_on_imagenet


def get_config():
    config = fine_tune_on_imagenet(
        "sit",
        {"keep_rate": 0.5},
        epochs=125.0,
        lr={"backbone": 4e-4},
        weight_decay=0.05,
        warmup_epochs=5.0,
        final_lr=0.025,
    )
    config.model.options.drop_path_rate = 0.1
    return config
