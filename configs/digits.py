"""The main job on scikit-learn's 1,797 handwritten digits: minutes on two cores, nothing to download."""

from slimvit_jax.training.recipes import life_from_scratch


def get_config():
    # 8x8 pixels enlarged to 32x32 and cut into patches of 4x4: 64 tokens, enough for dropping some to mean something.
    # One token per original pixel learns far slower: a token then says nothing about its neighbourhood.
    config = life_from_scratch(img_size=32, patch_size=4, in_chans=1, embed_dim=48, num_heads=3, mlp_ratio=2.0)
    config.name = "digits"
    config.data.batch_size = 64
    config.augment.update(kind="shift", shift=0.1, rotate=10.0, scale=0.1)
    config.mesh.cpu_devices = 1
    config.stages.dense.update(epochs=40.0, warmup_epochs=2.0, b2=0.95)
    config.stages.dense.lr.backbone = 2e-3
    # trained at the smallest budget evaluated: those weights serve the larger ones too, less so the other way round
    config.stages.predictor.epochs = 4.0
    config.stages.predictor.method_options = {"keep_rate": 0.5}
    config.stages.backbone.update(epochs=16.0, warmup_epochs=0.5, b2=0.95)
    config.stages.backbone.method_options = {"keep_rate": 0.5}
    config.stages.backbone.lr.backbone = 5e-4
    return config
