"""The folder of a run: one run at a time, one config, and a record of what is done.

config.json       the resolved config, written with the first checkpoint
environment.json  versions, devices, git state, command
lock              held while a run is going      stages.json        done stages: steps, seconds, metrics
data.json         class names, images per split   weights/STAGE.safetensors
checkpoints/STEP/  corrupt/STEP/
metrics.jsonl     tb/  profile/                  (see logs.py)
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax

from slimvit_jax.errors import SlimError
from slimvit_jax.files import read_json, write_json
from slimvit_jax.training import config as configs


class Workdir:
    """Opens or makes the folder; raises SlimError where it belongs to another config or another run holds it."""

    def __init__(self, path: str | Path, config: Any) -> None:
        self.path = Path(path).absolute()
        self.first_process = jax.process_index() == 0
        self._config: dict[str, Any] | None = None
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = self._take_lock() if self.first_process else None
        except OSError as error:
            raise SlimError(f"cannot use workdir {str(self.path)!r}: {error.strerror}") from error
        try:
            self._check_config(config)
        except SlimError:
            self.close()
            raise

    def _take_lock(self) -> int:
        handle = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(handle, 100).decode(errors="replace").strip()
            os.close(handle)
            raise SlimError(
                f"workdir {str(self.path)!r} is in use by another run (process {holder or 'unknown'})"
            ) from None
        os.ftruncate(handle, 0)
        os.write(handle, f"{os.getpid()} on {platform.node()}\n".encode())
        return handle

    def _check_config(self, config: Any) -> None:
        self._config = json.loads(json.dumps(config.to_dict()))
        file = self.path / "config.json"
        if not file.exists():
            return
        try:
            before = configs.from_dict(read_json(file))  # with defaults for fields that are newer than it
        except SlimError as error:
            raise SlimError(f"workdir {str(self.path)!r} has a config.json that is no run's of ours: {error}") from None
        changed = configs.differences(configs.flatten(before), configs.flatten(self._config))
        if changed and self.claimed:
            shown = "; ".join(changed[:8]) + (f"; and {len(changed) - 8} more" if len(changed) > 8 else "")
            advice = "take back what differs, or give another workdir"
            raise SlimError(f"{advice}: {str(self.path)!r} belongs to another config: {shown}")

    @property
    def claimed(self) -> bool:
        """Whether there is a checkpoint or a stage that is done: what only this run's config can go on from."""
        saved = self.path / "checkpoints"
        numbered = saved.is_dir() and any(entry.name.isdigit() for entry in saved.iterdir())
        return numbered or (self.path / "stages.json").exists()

    def claim(self) -> None:
        """Writes config.json, which binds the folder to it: called with the first checkpoint, no sooner."""
        if self.first_process and self._config is not None:
            write_json(self.path / "config.json", self._config)
            self._config = None

    def describe(self, train: Any, held_out: Any) -> None:
        """Writes environment.json and data.json, of the two sources."""
        if self.first_process:
            write_json(self.path / "environment.json", environment())
            images = {"train": train, "evaluation": held_out}
            facts = {use: {"split": source.split, "images": len(source)} for use, source in images.items()}
            write_json(self.path / "data.json", {"name": train.name, "class_names": train.class_names, **facts})

    def done(self) -> dict[str, dict[str, Any]]:
        """The stages that are done, by name, with what is known of them."""
        file = self.path / "stages.json"
        return read_json(file) if file.exists() else {}

    def mark_done(self, stage: str, facts: dict[str, Any]) -> None:
        """Records a stage as done; call it after its weights are written."""
        if self.first_process:
            write_json(self.path / "stages.json", {**self.done(), stage: facts})

    def weights(self, stage: str) -> Path:
        return self.path / "weights" / f"{stage}.safetensors"

    def close(self) -> None:
        """Lets the next run in."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def environment() -> dict[str, Any]:
    """What ran, where: versions, devices, git commit, command line."""
    versions = {}
    for package in ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "ml_collections"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "absent"
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "versions": versions,
        "devices": [f"{device.platform}:{device.id} {device.device_kind}" for device in jax.devices()],
        "processes": jax.process_count(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "command": sys.argv,
        "git": _git_state(),
    }


def _git_state() -> dict[str, Any]:
    """Commit of the source tree this package runs from, and whether it has changes; {} outside of one."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        result = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, timeout=20, check=True)
        return result.stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "changed": git("status", "--porcelain", "-uno").splitlines()}
    except (OSError, subprocess.SubprocessError):
        return {}
