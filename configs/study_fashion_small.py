"""benchmarks/study.py at the scale "small": DeiT-S's shape at 196 tokens, bfloat16, for one GPU."""

from slimvit_jax.training.recipes import study_on_fashion_mnist


def get_config():
    config = study_on_fashion_mnist(patch_size=2, embed_dim=384, num_heads=6, dtype="bfloat16")
    config.name = "study_small"
    config.data.update(batch_size=512, num_workers=4)
    config.eval.batch_size = 1000
    config.stages.dense.update(epochs=15.0)
    config.stages.dense.lr.backbone = 5e-4
    return config
