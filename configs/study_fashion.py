"""What benchmarks/study.py varies: Fashion-MNIST at 49 tokens, width 64, for two CPU cores ("micro").

The stages `predictor` and `backbone` are life regression's two epochs; `finetune` is the other methods' stage. Run as
it is with train.py, this is the dense model followed by life regression at 0.7.
"""

from slimvit_jax.training.config import add_stage, default_config


def get_config():
    config = default_config()
    config.name = "study_micro"
    config.model.options = dict(
        img_size=28, patch_size=4, in_chans=1, embed_dim=64, depth=12, num_heads=2, num_classes=10
    )
    config.method.options = {"keep_rate": 0.7, "locations": (4, 7, 10)}
    config.data.update(name="fashion_mnist", batch_size=128)
    config.augment.update(kind="shift", shift=0.1, hflip=0.5)
    config.eval.update(batch_size=250, every_epochs=0.0)
    config.report.enabled = False
    config.log.update(every_steps=50, tensorboard=False)
    config.checkpoint.every_steps = 400
    config.mesh.cpu_devices = 1
    add_stage(config, "dense", slimmed=False, epochs=10.0, lr={"backbone": 1e-3}, warmup_epochs=1.0, clip_norm=1.0)
    add_stage(config, "predictor", trainable="method", epochs=1.0, lr={"method": 1e-2})
    add_stage(config, "backbone", trainable="backbone", epochs=1.0, lr={"backbone": 3e-4}, warmup_epochs=0.1)
    add_stage(config, "finetune", epochs=2.0, lr={"backbone": 3e-4}, warmup_epochs=0.1, clip_norm=1.0)
    config.schedule = ("dense", "predictor", "backbone")
    return config
