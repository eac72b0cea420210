"""The main job on scikit-learn's 1,797 handwritten digits of 8x8 pixels: minutes on two cores, nothing to download."""

from slimvit_jax.training.config import add_stage, default_config


def get_config():
    config = default_config()
    config.name = "digits"
    config.model.options = dict(
        img_size=8, patch_size=1, in_chans=1, embed_dim=48, depth=12, num_heads=3, mlp_ratio=2.0, num_classes=10
    )
    config.method.options = dict(keep_rate=0.7, locations=(4, 7, 10))
    config.data.batch_size = 64
    config.augment.update(kind="shift", shift=0.1, rotate=10.0, scale=0.1)
    config.mesh.cpu_devices = 1
    add_stage(config, "dense", slimmed=False, epochs=60.0, lr={"backbone": 2e-3}, warmup_epochs=3.0, clip_norm=1.0)
    add_stage(config, "predictor", trainable="method", epochs=4.0, lr={"method": 1e-2})
    add_stage(config, "backbone", trainable="backbone", epochs=10.0, lr={"backbone": 5e-4}, warmup_epochs=1.0)
    return config
