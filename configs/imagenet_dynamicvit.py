"""DynamicViT on ImageNet: 30 epochs from DeiT-S, the predictors learning a hundred times as fast as the backbone.

Values of main_dynamic_vit.py of raoyongming/DynamicViT: 8 x 96 images, 5e-4 per 512 of them. There the backbone rests
for five epochs and then learns at one rate until the cosine falls below it, class token and position embedding never;
here all of it follows the cosine from the first step.
"""

from slimvit_jax.training.recipes import fine_tune_on_imagenet


def get_config():
    rate = {"lr": {"backbone": 7.5e-6, "method": 7.5e-4}, "final_lr": 0.013}
    config = fine_tune_on_imagenet("dynamicvit", {"keep_rate": 0.7}, weight_decay=0.05, **rate)
    config.data.batch_size = 768
    return config
