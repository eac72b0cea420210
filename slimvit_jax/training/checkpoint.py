"""Checkpoints of a run: the train state, where the data stands, and a few plain facts, by Orbax, asynchronously."""

from __future__ import annotations

import functools
import json
import logging
import shutil
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from slimvit_jax.errors import first_line

Say = Callable[..., None]


@jax.jit
def fingerprint(tree: Any) -> jax.Array:
    """(leaves,) uint32: per array the wrapped sum of its bits taken as integers.

    Any single changed bit shows, and the order of summation does not matter: the same on any number of devices.
    """

    def total(leaf: jax.Array) -> jax.Array:
        width = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[leaf.dtype.itemsize]
        bits = leaf if leaf.dtype == bool else jax.lax.bitcast_convert_type(leaf, width)
        return bits.astype(jnp.uint32).sum(dtype=jnp.uint32)

    return jnp.stack([total(leaf) for leaf in jax.tree.leaves(tree)])


def _digest(meta: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(meta, sort_keys=True).encode())


class Checkpoints:
    """The checkpoints of a workdir, named by the global step (over all stages).

    Each holds `state` (the TrainState) and `meta`, JSON with the stage, its step, the global step, the data iterator's
    state, and checksums of both: Orbax notices a truncated file, but not a changed number. A save that fails, as on a
    full disk, is reported and training goes on: the last good checkpoint stays. One that cannot be read is reported,
    moved to corrupt/ beside the others, and the one before it is used.

    Args:
      directory: of the checkpoints; made if missing.
      keep: how many to keep.
      say: called as say(event, text, **facts) with what went wrong.
    """

    def __init__(self, directory: Path, keep: int, say: Say) -> None:
        for name in ("absl", "orbax"):  # they tell of every file, and of every failure at length: `say` does that
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self._directory, self._say = directory, say
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, cleanup_tmp_directories=True, enable_async_checkpointing=True, save_root_metadata=False
        )
        self._manager = ocp.CheckpointManager(directory, options=options, item_names=("state", "meta"))
        self._last: int | None = None

    def save(self, step: int, state: Any, meta: Mapping[str, Any], wait: bool = False) -> bool:
        """Starts a save; `wait` until it is on disk. False where it, or the one before it, failed.

        The arrays are copied before this returns, so the next step may consume the state.
        """
        self.wait()
        self._last = step
        facts = {**meta, "fingerprint": np.asarray(fingerprint(state)).tolist()}
        facts["digest"] = _digest(facts)
        try:
            arguments = ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(facts))
            self._manager.save(step, args=arguments, force=True)
            if wait:
                self._manager.wait_until_finished()
        except Exception as error:  # Orbax, tensorstore and the file system raise many kinds
            self._failed(step, error)
            return False
        return True

    def reached_preemption(self, step: int) -> bool:
        """True at the step at which all processes of a distributed run shall save and stop."""
        return jax.process_count() > 1 and self._manager.reached_preemption(step)

    def restore(self, stage: str, abstract: Any) -> tuple[Any, dict[str, Any]] | None:
        """The newest readable (state, meta) of a stage, or None.

        Args:
          stage: its name; checkpoints of other stages are left alone.
          abstract: jax.ShapeDtypeStruct tree of the state with the shardings to restore it to.
        """
        self.wait()  # the save under way, of the stage before, deletes old checkpoints at its end
        for step in sorted(self._manager.all_steps(read=True), reverse=True):
            meta = self._attempt(step, functools.partial(self._read_meta, step))
            if meta is None or meta.get("stage") != stage:
                continue
            restored = self._attempt(step, functools.partial(self._read_state, step, abstract, meta))
            if restored is not None:
                return restored, meta
        return None

    def _read_meta(self, step: int) -> dict[str, Any]:
        meta = dict(self._restore(step, meta=ocp.args.JsonRestore()).meta)
        if meta.pop("digest", None) != _digest(meta):
            raise ValueError("its meta data is damaged")
        return meta

    def _read_state(self, step: int, abstract: Any, meta: Mapping[str, Any]) -> Any:
        state = self._restore(step, state=ocp.args.StandardRestore(abstract)).state
        if np.asarray(fingerprint(state)).tolist() != meta["fingerprint"]:
            raise ValueError("its arrays are not those that were saved")
        return state

    def _restore(self, step: int, **items: Any) -> Any:
        return self._manager.restore(step, args=ocp.args.Composite(**items))

    def _attempt(self, step: int, read: Callable[[], Any]) -> Any:
        try:
            return read()
        except Exception as error:
            text = f"checkpoint {step} cannot be read ({first_line(error)}); using the one before it"
            self._say("checkpoint_corrupt", text, step=step)
            if jax.process_index() == 0:
                aside = self._directory.with_name("corrupt")
                aside.mkdir(exist_ok=True)
                shutil.rmtree(aside / str(step), ignore_errors=True)
                shutil.move(str(self._directory / str(step)), str(aside / str(step)))
            self._manager.reload()
            return None

    def _failed(self, step: int | None, error: Exception) -> None:
        good = [s for s in self._manager.all_steps(read=True) if s != step]
        kept = f"the last good one is {max(good)}" if good else "there is none before it"
        self._say("checkpoint_failed", f"checkpoint {step} could not be saved ({first_line(error)}); {kept}", step=step)
        if step is not None:  # what lies there is not whole
            for left in self._directory.glob(f"{step}.orbax-checkpoint-tmp*"):
                shutil.rmtree(left, ignore_errors=True)
        self._manager.reload()

    def wait(self) -> None:
        """Waits for the save under way, if there is one."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            self._failed(self._last, error)

    def close(self) -> None:
        """Waits for the save under way."""
        self.wait()
        self._manager.close()
