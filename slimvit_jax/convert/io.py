"""Weights files: .safetensors, .pth, .npz and Orbax directories, in and out."""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from slimvit_jax.convert import google, hub, rules
from slimvit_jax.convert.statedict import from_torch, to_torch
from slimvit_jax.errors import SlimError, unknown
from slimvit_jax.files import atomic_path

StateDict = dict[str, Any]


def load(model: Any, path: str | os.PathLike[str], **options: Any) -> dict[str, Any]:
    """The variables for `model` from a weights file.

    Args:
      model: from create_model.
      path: .safetensors, .pth or .npz with timm or official names (.npz also in the layout of Google's ViT files), an
        Orbax directory that `save` wrote, or "hf-hub:timm/NAME" (downloaded, kept in the hub's cache).
      **options: of `from_torch`: init_missing, ignore, resample_pos_embed, rng.

    Raises:
      SlimError: no such file, a kind we do not read, a truncated or foreign file, or weights that do not fit the model.
    """
    state = read_state_dict(path)
    try:
        return from_torch(model, state, **options)
    except SlimError as error:
        raise SlimError(f"{path}: {error}") from None


def save(model: Any, variables: Mapping[str, Any], path: str | os.PathLike[str], *, inference: bool = False) -> None:
    """Writes variables under timm's names, the kind chosen by suffix as in `load`; no suffix or .orbax: a directory.

    The file or directory appears complete or not at all, and replaces one of that name. In a run of several processes
    one of them calls this, with a file: Orbax would wait for the others. `inference` leaves out what only training
    reads; such a file is loaded with the same option.

    Raises:
      SlimError: a suffix we do not write, a directory in a run of several processes, or variables that are not those of
        `model`.
    """
    path = Path(path)
    write = _WRITERS[writable_suffix(path)]
    if path.suffix in DIRECTORY and jax.process_count() > 1:
        raise SlimError(f"{path}: a run of several processes cannot write an Orbax directory here; use .safetensors")
    if (path.suffix in DIRECTORY) != path.is_dir() and path.exists():
        raise SlimError(f"{path}: exists and is {'a directory' if path.is_dir() else 'a file'}; choose another name")
    state = to_torch(model, variables, inference=inference)
    if inference:
        flat = rules.flatten(variables)
        variables = rules.unflatten({p: leaf for p, leaf in flat.items() if not rules.is_training_only(model, p)})
    try:
        write(path, state, variables)
    except OSError as error:
        raise SlimError(f"{path}: cannot be written: {error.strerror or error}") from error


def writable_suffix(path: Path) -> str:
    """The suffix of `path` if `save` can write that kind; a SlimError with the choices if not."""
    if path.suffix not in _WRITERS:
        raise unknown(f"kind of weights file ({path})", path.suffix, [kind or "none (Orbax)" for kind in _WRITERS])
    return path.suffix


def read_state_dict(path: str | os.PathLike[str]) -> StateDict:
    """The arrays of a weights file by state-dict name, in torch's layout; as `load`, without a model."""
    local = hub.fetch(str(path)) if hub.is_hub(str(path)) else Path(path)
    if not local.exists():
        raise SlimError(f"{path}: no such file or directory")
    read = _read_orbax if local.is_dir() else _READERS.get(local.suffix)
    if read is None:
        raise unknown(f"kind of weights file ({path})", local.suffix, [*_READERS, "an Orbax directory"])
    try:
        return read(local)
    except SlimError as error:
        raise SlimError(f"{path}: {error}") from None
    except Exception as error:  # readers raise their own kinds of errors for truncated and foreign files
        why = (str(error).strip().splitlines() or [""])[0][:160]
        kind = "Orbax directory" if local.is_dir() else f"{local.suffix} file"
        raise SlimError(f"{path}: not a complete {kind} ({type(error).__name__}: {why})") from error


def _read_safetensors(path: Path) -> StateDict:
    import safetensors.numpy

    return safetensors.numpy.load_file(path)


def _write_safetensors(path: Path, state: StateDict, variables: Mapping[str, Any]) -> None:
    import safetensors.numpy

    with atomic_path(path) as temporary:
        temporary.touch()  # with the permissions of any new file
        mode = temporary.stat().st_mode
        # "pt" is what torch's and timm's readers look for
        safetensors.numpy.save_file(state, temporary, metadata={"format": "pt"})
        temporary.chmod(mode)  # safetensors gives its files to their owner alone


def _read_npz(path: Path) -> StateDict:
    archive = np.load(path, allow_pickle=False)
    if isinstance(archive, np.ndarray):
        raise SlimError("holds a single array, not named ones")
    with archive:
        state = {name: archive[name] for name in archive.files}
    return google.to_timm(state) if google.is_google(state) else state


def _write_npz(path: Path, state: StateDict, variables: Mapping[str, Any]) -> None:
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **state)


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise SlimError(".pth files need torch: pip install -r requirements-torch.txt, or use .safetensors") from error
    return torch


def _read_pth(path: Path) -> StateDict:
    torch = _torch()
    # training scripts (SiT's, Evo-ViT's) leave their arguments beside the weights: a plain holder of values
    with torch.serialization.safe_globals([argparse.Namespace]):
        content = torch.load(path, map_location="cpu", weights_only=True)
    for wrapper in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    if not isinstance(content, Mapping):
        raise SlimError(f"holds a {type(content).__name__}, not a state dict")
    if content and all(str(name).startswith("module.") for name in content):  # saved from a data-parallel wrapper
        content = {name.removeprefix("module."): value for name, value in content.items()}
    return dict(content)


def _write_pth(path: Path, state: StateDict, variables: Mapping[str, Any]) -> None:
    torch = _torch()
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in state.items()}
    with atomic_path(path) as temporary:
        torch.save(tensors, temporary)


def _read_orbax(path: Path) -> StateDict:
    import orbax.checkpoint as ocp

    with ocp.PyTreeCheckpointer() as checkpointer:
        metadata = checkpointer.metadata(path.absolute()).item_metadata
        tree = getattr(metadata, "tree", None)
        if not isinstance(tree, Mapping) or rules.PARAMS not in tree:
            raise SlimError("no weights that slimvit_jax saved (a directory with `params` in it)")
        # as numpy arrays: the devices that wrote it need not be here
        how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        variables = checkpointer.restore(path.absolute(), restore_args=how)
    flat = rules.flatten(variables)
    return {
        name: rules.to_torch_layout(leaf, np.asarray(flat[leaf.path])) for name, leaf in rules.leaves(variables).items()
    }


def _write_orbax(path: Path, state: StateDict, variables: Mapping[str, Any]) -> None:
    import orbax.checkpoint as ocp

    path = path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh, old = (path.with_name(f".{path.name}.{kind}.{os.getpid()}") for kind in ("new", "old"))
    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            checkpointer.save(fresh, rules.unflatten(jax.device_get(rules.flatten(variables))), force=True)
        if path.exists():  # a directory with files in it cannot be replaced in one step
            path.rename(old)
        fresh.rename(path)
    finally:
        if old.exists() and not path.exists():
            old.rename(path)
        for left in (fresh, old):
            shutil.rmtree(left, ignore_errors=True)


DIRECTORY = ("", ".orbax")
_READERS: dict[str, Callable[[Path], StateDict]] = {
    ".safetensors": _read_safetensors,
    ".pth": _read_pth,
    ".npz": _read_npz,
}
_WRITERS: dict[str, Callable[[Path, StateDict, Mapping[str, Any]], None]] = {
    ".safetensors": _write_safetensors,
    ".pth": _write_pth,
    ".npz": _write_npz,
    "": _write_orbax,
    ".orbax": _write_orbax,
}
