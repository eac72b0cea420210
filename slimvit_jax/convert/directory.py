"""Weights as an Orbax directory."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from slimvit_jax.convert import rules
from slimvit_jax.errors import SlimError, first_line
from slimvit_jax.quiet import quiet

#: What save leaves in a directory of its own: the names of all files in it.
MARK = "slimvit_jax.json"
#: They log a line about every file, and every failure at length, which is an error here.
_LOUD = ("absl", "orbax")
_ORBAX = ("_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt")


def is_orbax(path: Path) -> bool:
    """Whether a directory looks like a checkpoint of Orbax."""
    return any((path / name).exists() for name in _ORBAX)


def strangers(path: Path) -> list[str] | None:
    """The files in a directory that `write` did not write; None where it did not write the directory at all."""
    try:
        own = set(json.loads((path / MARK).read_text(encoding="utf-8"))["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return sorted(set(_files(path)) - own)


def read(path: Path) -> dict[str, Any]:
    """The arrays of a directory of ours by state-dict name, in torch's layout.

    Raises:
      SlimError: it holds something else, or is damaged.
    """
    import orbax.checkpoint as ocp

    with quiet(*_LOUD), ocp.PyTreeCheckpointer() as checkpointer:
        try:
            tree = getattr(checkpointer.metadata(path.absolute()).item_metadata, "tree", None)
            if tree is None and (path / MARK).exists():
                raise SlimError("damaged: Orbax cannot read its metadata")
            if not isinstance(tree, Mapping) or rules.PARAMS not in tree:
                raise SlimError("no weights that slimvit_jax saved (a directory with `params` in it)")
            # as numpy arrays: the devices that wrote it need not be here
            how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
            variables = checkpointer.restore(path.absolute(), restore_args=how)
        except SlimError:
            raise
        except Exception as error:  # of whatever kind Orbax and TensorStore like
            raise SlimError(f"not a complete Orbax directory ({type(error).__name__}: {first_line(error)})") from error
    flat = rules.flatten(variables)
    return {
        name: rules.to_torch_layout(leaf, np.asarray(flat[leaf.path])) for name, leaf in rules.leaves(variables).items()
    }


def write(path: Path, variables: Mapping[str, Any]) -> None:
    """Writes variables; replaces a directory at `path`, which is to be one of ours. Complete or not at all."""
    import orbax.checkpoint as ocp

    path = path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh, old = (path.with_name(f".{path.name}.{kind}.{os.getpid()}") for kind in ("new", "old"))
    try:
        with quiet(*_LOUD), ocp.PyTreeCheckpointer() as checkpointer:
            checkpointer.save(fresh, rules.unflatten(jax.device_get(rules.flatten(variables))), force=True)
        (fresh / MARK).write_text(json.dumps({"files": [MARK, *_files(fresh)]}), encoding="utf-8")
        if path.exists():  # a directory with files in it cannot be replaced in one step
            path.rename(old)
        fresh.rename(path)
    finally:
        if old.exists() and not path.exists():
            old.rename(path)
        for left in (fresh, old):
            shutil.rmtree(left, ignore_errors=True)


def _files(path: Path) -> list[str]:
    return [str(file.relative_to(path)) for file in path.rglob("*") if not file.is_dir() or file.is_symlink()]
