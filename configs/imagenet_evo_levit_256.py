"""Evo-LeViT-256 on ImageNet: from scratch in 300 epochs, distilled into its second head, pruning from the first step.

    python train.py --config=configs/imagenet_evo_levit_256.py --workdir=runs/imagenet_evo_levit_256

Source: main_levit.py and engine_levit.py of Evo-ViT: 8 x 256 images, AdamW, 5e-4 per 512 images; every layer selects
anew with a fixed tradeoff for 200 epochs, then once per stage with a learned one. The two cosines here meet where the
release's one over 300 epochs would be. It distils from RegNetY-16GF, which is not in this library; the labeller here is
DeiT-B, and `training.run(..., labeller=)` takes any other network. It clips gradients unit by unit (AGC, 0.01); here
their norm is clipped.
Losses: scratch: 0.25 classification + 0.25 class_token + 0.5 hard_distillation. stagewise: 0.25 classification + 0.25
class_token + 0.5 hard_distillation.
Outcome: Not trained here.
"""

from slimvit_jax.training.config import add_stage, default_config


def get_config():
    config = default_config()
    config.name = "imagenet_evo_levit_256"
    config.model.name = "evo_levit_256"
    config.model.options = {"dtype": "bfloat16"}
    config.method.name = ""  # the model is one
    config.data.update(name="imagenet2012", eval_split="validation", batch_size=2048, num_workers=8, repeats=3)
    config.augment.update(kind="crop", hflip=0.5, color_jitter=0.4, randaugment="rand-m9-mstd0.5-inc1", erase_prob=0.25)
    config.mixup.update(mixup=0.8, cutmix=1.0)
    config.labeller.update(name="deit_base_patch16_224", path="published")
    config.eval.batch_size = 256
    config.checkpoint.every_steps = 1000
    config.log.every_steps = 50
    common = {"slimmed": False, "weight_decay": 0.025, "label_smoothing": 0.1, "ema": 0.99996, "clip_norm": 1.0}
    common["loss_weights"] = {"classification": 0.25, "class_token": 0.25, "hard_distillation": 0.5}
    first = {"lr": {"backbone": 2e-3}, "warmup_epochs": 5.0, "final_lr": 0.25}
    first["model_options"] = {"stage_wise_prune": False, "learn_tradeoff": False}
    add_stage(config, "scratch", epochs=200.0, **first, **common)
    add_stage(config, "stagewise", epochs=100.0, lr={"backbone": 5e-4}, final_lr=0.02, **common)
    return config
