"""The main job on scikit-learn's 1,797 handwritten digits of 8x8 pixels: minutes on two cores, nothing to download."""

from slimvit_jax.training.recipes import life_from_scratch


def get_config():
    # a token per pixel: 64 tokens are enough for dropping some to mean something
    config = life_from_scratch(img_size=8, patch_size=1, in_chans=1, embed_dim=48, num_heads=3, mlp_ratio=2.0)
    config.name = "digits"
    config.data.batch_size = 64
    config.augment.update(kind="shift", shift=0.1, rotate=10.0, scale=0.1)
    config.mesh.cpu_devices = 1
    config.stages.dense.update(epochs=60.0, warmup_epochs=3.0)
    config.stages.dense.lr.backbone = 2e-3
    config.stages.predictor.epochs = 4.0
    config.stages.backbone.update(epochs=10.0, warmup_epochs=1.0)
    config.stages.backbone.lr.backbone = 5e-4
    return config
