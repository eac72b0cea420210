"""Evo-ViT on ImageNet: from scratch, pruning from the first step, DeiT's recipe of 300 epochs."""

from slimvit_jax.training.recipes import fine_tune_on_imagenet


def get_config():
    config = fine_tune_on_imagenet(
        "evo",
        {"keep_rate": 0.5},
        epochs=300.0,
        lr={"backbone": 1e-3},
        warmup_epochs=5.0,
        weight_decay=0.05,
        final_lr=0.01,
    )
    config.init.path = ""
    config.model.options.drop_path_rate = 0.1
    return config
