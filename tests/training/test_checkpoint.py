"""The checkpoints of a run by themselves; what a run does with them: test_train_runs.py and test_train_resume.py."""

import jax
import jax.numpy as jnp
import pytest

from slimvit_jax.training.checkpoint import Checkpoints


@pytest.fixture
def checkpoints(tmp_path):
    """Keeps one; whatever it has to say is an error."""

    def say(event, text, **facts):
        raise AssertionError(f"{event}: {text}")

    made = Checkpoints(tmp_path / "checkpoints", 1, say)
    yield made
    made.close()


def test_a_save_under_way_is_over_before_anything_is_read(checkpoints, tmp_path):
    """The next stage looks for its checkpoints while the last save of the one before deletes what is no longer kept."""
    state = {"kernel": jnp.arange(200_000.0), "bias": jnp.ones(7)}
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state)
    for step in range(1, 6):
        assert checkpoints.save(step, state, {"stage": "dense", "stage_step": step})
        assert checkpoints.restore("predictor", abstract) is None
        assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == [str(step)]
    restored, meta = checkpoints.restore("dense", abstract)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, restored, state)) and meta["stage_step"] == 5
