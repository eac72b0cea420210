"""The study at the scale "small", Fashion-MNIST at 196 tokens: every method from one dense DeiT-S, for one GPU.

    python -m benchmarks.study --config=configs/study_fashion_small.py --workdir=results/study_small

`predictor` and `backbone` are life regression's two epochs, `finetune` is every other method's stage;
benchmarks/study_cells.py has what varies. train.py runs the dense model followed by life regression at 0.7.

Source: stages and rates are ours, since no paper trains on these images; the options of a method are those at which its
multiply-adds come nearest to life regression's.
Losses: dense: classification. predictor: classification. backbone: classification.
Outcome: Not trained here.
"""

from slimvit_jax.training.config import add_stage, default_config


def get_config():
    config = default_config()
    config.name = "study_small"
    config.model.name = "vit"
    shape = {"embed_dim": 384, "depth": 12, "num_heads": 6, "dtype": "bfloat16"}
    config.model.options = {"img_size": 28, "patch_size": 2, "in_chans": 1, "num_classes": 10, **shape}
    config.method.name = "life_regression"
    config.method.options = {"keep_rate": 0.7, "locations": (4, 7, 10)}
    config.data.update(name="fashion_mnist", batch_size=512, num_workers=4)
    config.eval.update(batch_size=1000, every_epochs=0.0)
    config.augment.update(kind="shift", shift=0.1, hflip=0.5)  # a tenth of the side; no mixup
    config.report.enabled = False
    config.log.update(every_steps=50, tensorboard=False)
    config.checkpoint.every_steps = 400
    common = {"weight_decay": 0.05, "clip_norm": 1.0}
    add_stage(config, "dense", slimmed=False, epochs=15.0, lr={"backbone": 5e-4}, warmup_epochs=1.0, **common)
    add_stage(config, "predictor", trainable="method", epochs=1.0, lr={"method": 1e-2}, weight_decay=0.05)
    backbone = {"lr": {"backbone": 3e-4}, "weight_decay": 0.05, "warmup_epochs": 0.1}
    add_stage(config, "backbone", trainable="backbone", epochs=1.0, **backbone)
    add_stage(config, "finetune", epochs=2.0, lr={"backbone": 3e-4}, warmup_epochs=0.1, **common)
    config.schedule = ("dense", "predictor", "backbone")
    return config
