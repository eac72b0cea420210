"""Methods whose training carries more than parameters: stopped and gone on with, they end with the same bits."""

from __future__ import annotations

import numpy as np
import pytest
from test_train_runs import stop_after
from train_tools import CACHE, few_images, same, shipped, tiny

from slimvit_jax import convert, training
from slimvit_jax.training import build


@pytest.mark.parametrize("method", ["dynamicvit", "sit"])
def test_a_teacher_survives_a_restart(method, tmp_path, monkeypatch):
    """The teacher is in the checkpoint, an average of the weights is kept, DynamicViT draws its decisions at random."""
    config = few_images(tiny(shipped(f"fashion_{method}"), steps=3))
    config.log.tensorboard, config.cache_dir = False, CACHE
    config.schedule = ("finetune",)
    config.mixup.update(mixup=0.8, cutmix=1.0)
    config.stages.finetune.update(ema=0.9, clip_norm=1.0)
    dense = training.build_model(config, slimmed=False)
    weights = build.init_variables(dense, seed=1)
    convert.save(dense, weights, tmp_path / "dense.safetensors")
    config.init.path = str(tmp_path / "dense.safetensors")
    straight = training.run(config, tmp_path / "straight")
    assert straight.model.slim.needs_teacher
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(training.Stopped, match="stopped at step 2 of stage 'finetune'"):
            training.run(config, tmp_path / "stopped")
    again = training.run(config, tmp_path / "stopped")
    assert same(straight.variables["finetune"]["params"], again.variables["finetune"]["params"])
    assert not np.array_equal(
        weights["params"]["head"]["kernel"], again.variables["finetune"]["params"]["head"]["kernel"]
    )
