"""Life regression on Fashion-MNIST at 49 tokens with what the study found better than the paper's training.

    python train.py --config=configs/fashion_life_hard.py --workdir=runs/fashion_life_hard

Source: docs/results.md, "hard masks, single stage": training masks exactly what inference drops, with predictor and
backbone in one stage. The paper's stages are in fashion_mnist_49.py; stages and rates are ours, since no paper trains
on these images.
Losses: dense: classification. finetune: classification.
Outcome: Not trained at this width; results/study_micro has it on a model 64 wide (configs/study_fashion.py),
docs/results.md its figures.
"""

from slimvit_jax.training.config import add_stage, default_config


def get_config():
    config = default_config()
    config.name = "fashion_life_hard"
    config.model.name = "vit"
    shape = {"embed_dim": 96, "depth": 12, "num_heads": 3}
    config.model.options = {"img_size": 28, "patch_size": 4, "in_chans": 1, "num_classes": 10, **shape}
    config.method.name = "life_regression"
    config.method.options = {"keep_rate": 0.7, "locations": (4, 7, 10), "hard": True}
    config.data.update(name="fashion_mnist", batch_size=128)
    config.augment.update(kind="shift", shift=0.1, hflip=0.5)  # a tenth of the side; no mixup
    common = {"weight_decay": 0.05, "clip_norm": 1.0}
    add_stage(config, "dense", slimmed=False, epochs=10.0, lr={"backbone": 1e-3}, warmup_epochs=0.5, **common)
    rates = {"backbone": 3e-4, "method": 1e-2}
    add_stage(config, "finetune", epochs=2.0, lr=rates, warmup_epochs=0.1, **common)
    return config
