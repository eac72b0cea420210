"""DiffRate's counts learned on ImageNet for DeiT-S at 2.9 GFLOPs: 3 epochs, as its README; the backbone frozen."""

from slimvit_jax.training.recipes import fine_tune_on_imagenet


def get_config():
    # 2.9 GFLOPs of the whole model leave 62.6 % of the layers' multiply-adds.
    rates = {"trainable": "method", "lr": {"method": 0.01}, "final_lr": 0.1, "weight_decay": 0.0}
    config = fine_tune_on_imagenet("diffrate", {"target_flops": 0.626}, epochs=3.0, **rates)
    config.name = "imagenet_diffrate_rates"
    config.model.options.drop_path_rate = 0.1
    return config
