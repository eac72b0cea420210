"""Evo-LeViT-256 on ImageNet: from scratch in 300 epochs, distilled, pruning from the first step."""

from slimvit_jax.training.recipes import levit_on_imagenet


def get_config():
    config = levit_on_imagenet("evo_levit_256", "evo_levit_256", epochs=200.0)
    # engine_levit.py of Evo-ViT selects in front of every layer with a fixed tradeoff for 200 epochs, then once per
    # stage with a learned one. The two cosines here meet where the release's one over 300 epochs would be.
    first = config.stages.scratch
    first.loss_weights.update({"classification": 0.25, "class_token": 0.25})
    config.stages.stagewise = first.copy_and_resolve_references()
    config.schedule = ("scratch", "stagewise")
    first.update(final_lr=0.25, model_options={"stage_wise_prune": False, "learn_tradeoff": False})
    config.stages.stagewise.update(epochs=100.0, warmup_epochs=0.0, final_lr=0.02)
    config.stages.stagewise.lr.backbone = 5e-4
    return config
