"""Life regression on Fashion-MNIST at 28x28 with patches of 4: 49 tokens.

    python train.py --config=configs/fashion_mnist_49.py --workdir=runs/fashion_mnist_49

Source: the paper's two stages, predictor then backbone, after a dense one; stages and rates are ours, since no paper
trains on these images. Images from Debian's dataset-fashion-mnist, or data.data_dir.
Losses: dense: classification. predictor: classification. backbone: classification.
Outcome: Not trained at this width; results/study_micro has life regression on a model 64 wide
(configs/study_fashion.py), docs/results.md its figures.
"""

from slimvit_jax.training.config import add_stage, default_config


def get_config():
    config = default_config()
    config.name = "fashion_mnist_49"
    config.model.name = "vit"
    shape = {"embed_dim": 96, "depth": 12, "num_heads": 3}
    config.model.options = {"img_size": 28, "patch_size": 4, "in_chans": 1, "num_classes": 10, **shape}
    config.method.name = "life_regression"
    config.method.options = {"keep_rate": 0.7, "locations": (4, 7, 10)}
    config.data.update(name="fashion_mnist", batch_size=128)
    config.augment.update(kind="shift", shift=0.1, hflip=0.5)  # a tenth of the side; no mixup
    dense = {"lr": {"backbone": 1e-3}, "warmup_epochs": 1.0, "clip_norm": 1.0}
    add_stage(config, "dense", slimmed=False, epochs=20.0, weight_decay=0.05, **dense)
    add_stage(config, "predictor", trainable="method", epochs=1.0, lr={"method": 1e-2}, weight_decay=0.05)
    backbone = {"lr": {"backbone": 3e-4}, "warmup_epochs": 0.5}
    add_stage(config, "backbone", trainable="backbone", epochs=3.0, weight_decay=0.05, **backbone)
    return config
