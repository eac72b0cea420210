"""Weights files: .safetensors, .pth, .npz and Orbax directories, in and out; more kinds in."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from slimvit_jax.backbones.base import Backbone
from slimvit_jax.convert import directory, formats, hub, layouts, rules
from slimvit_jax.convert.statedict import from_torch, to_torch
from slimvit_jax.errors import SlimError, unknown
from slimvit_jax.keywords import checked, keywords_of
from slimvit_jax.text import option

DIRECTORY = ("", ".orbax")


def load(model: Backbone, path: str | os.PathLike[str], **options: Any) -> dict[str, Any]:
    """The variables for `model` from a weights file.

    Args:
      model: from create_model.
      path: one of

        * .safetensors, .npz, or a file of torch (.pth, .pt, .bin, .ckpt, .tar), under any names that `from_torch` takes
          (Google's layouts are .npz);
        * *.index.json of a sharded checkpoint;
        * a folder with model.safetensors, pytorch_model.bin or the index of one of them, as transformers writes;
        * an Orbax directory that `save` wrote;
        * "hf-hub:timm/NAME" or another repository (downloaded, kept in the hub's cache).
      **options: of `from_torch`: init_missing, ignore, resample_pos_embed, antialias, checkpoint_key, inference, rng.

    Raises:
      SlimError: no such file, a kind we do not read, a truncated or foreign file, or weights that do not fit the model.
    """
    content = _read(path)
    try:
        return from_torch(model, content, **options)
    except SlimError as error:
        raise SlimError(f"{path}: {error}") from None


def split_load_options(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Keywords that are meant for `load`, and the others: for callers that take those of `create_model` beside them."""
    names = keywords_of(from_torch)
    chosen = {name: value for name, value in options.items() if name in names}
    return chosen, {name: value for name, value in options.items() if name not in names}


@checked
def save(
    model: Backbone,
    variables: Mapping[str, Any],
    path: str | os.PathLike[str],
    *,
    inference: bool = False,
    overwrite: bool = False,
) -> None:
    """Writes variables under timm's names: .safetensors, .pth or .npz by suffix; without one, or .orbax, a directory.

    The file or directory appears complete or not at all. In a run of several processes one of them calls this, with a
    file: Orbax would wait for the others. A floating type that a kind of file has no form for (bfloat16 in .npz, eight
    bits anywhere) is written as float32, which holds the same values.

    Args:
      model: from create_model.
      variables: {"params": ...} of floating arrays, and "batch_stats" where the model has them.
      path: where to.
      inference: leave out what only training reads; such a file is loaded with the same option.
      overwrite: replace what is there: a file, or a directory that `save` wrote and nobody else has put a file into.
        Anything else is never replaced.

    Raises:
      SlimError: a suffix we do not write, a path where something is, a directory in a run of several processes, or
        variables that are not those of `model`.
    """
    path = writable(path, overwrite)
    if path.suffix in DIRECTORY and jax.process_count() > 1:
        raise SlimError(f"{path}: a run of several processes cannot write an Orbax directory here; use .safetensors")
    state = to_torch(model, variables, inference=inference)
    try:
        if path.suffix in DIRECTORY:
            flat = rules.flatten(variables)
            if inference:
                flat = {p: leaf for p, leaf in flat.items() if not rules.is_training_only(model, p)}
            directory.write(path, rules.unflatten(flat))
        else:
            formats.WRITERS[path.suffix](path.resolve() if path.is_symlink() else path, state)
    except OSError as error:
        raise SlimError(f"{path}: cannot be written: {error.strerror or error}") from error


def writable(path: str | os.PathLike[str], overwrite: bool = False) -> Path:
    """`path`, if `save` can write there.

    Raises:
      SlimError: what is wrong with it; see `save`.
    """
    given, path = os.fspath(path), Path(path)
    if path.name in ("", "..") or "\0" in str(path):
        raise SlimError(f"weights file {given!r}: names no file; give a name such as weights.safetensors")
    if path.suffix not in (*formats.WRITERS, *DIRECTORY):
        kinds = [*formats.WRITERS, "none (Orbax)", ".orbax"]
        raise unknown(f"kind of weights file ({path})", path.suffix, kinds)
    if not os.path.lexists(path):
        return path
    is_directory = path.is_dir() and not path.is_symlink()
    if (path.suffix in DIRECTORY) != is_directory or not (is_directory or path.is_file()):
        raise SlimError(f"{path}: exists and is {_sort(path)}; choose another name")
    if is_directory:
        foreign = directory.strangers(path)
        if foreign is None or foreign:
            what = f"holds {foreign[0]!r}, which save did not write" if foreign else "save did not write it"
            raise SlimError(f"{path}: is a directory and {what}; it is not replaced: choose another name")
    if not overwrite:
        raise SlimError(f"{path}: exists; {option('weights', 'overwrite', True)} replaces it")
    return path


def _sort(path: Path) -> str:
    if path.is_symlink():
        return "a link" if path.exists() else "a link to nowhere"
    return "a directory" if path.is_dir() else "a file" if path.is_file() else "no file to write to"


def read_state_dict(path: str | os.PathLike[str], checkpoint_key: str | None = None) -> dict[str, Any]:
    """The arrays of a weights file by state-dict name, in torch's layout; as `load`, without a model.

    Args:
      path: as of `load`.
      checkpoint_key: as of `from_torch`.
    """
    content = _read(path)
    try:
        return layouts.unwrap(content, checkpoint_key)
    except SlimError as error:
        raise SlimError(f"{path}: {error}") from None


def _read(path: str | os.PathLike[str]) -> Any:
    """What the file holds, as it is there."""
    local = hub.fetch_weights(str(path)) if hub.is_hub(str(path)) else Path(path)
    if not str(path) or not local.exists():
        raise SlimError(f"{str(path) or repr('')}: no such file or directory")
    if local.is_dir() and not directory.is_orbax(local):
        inside = [local / name for name in formats.IN_A_FOLDER if (local / name).is_file()]
        if not inside:
            choices = f"{', '.join(formats.IN_A_FOLDER)}, and no Orbax directory that save wrote"
            raise SlimError(f"{path}: no weights in this folder: none of {choices}")
        local = inside[0]
    if not local.is_dir() and formats.kind_of(local) not in formats.READERS:
        raise unknown(f"kind of weights file ({path})", local.suffix, [*formats.READERS, "an Orbax directory"])
    if not local.is_dir() and not local.is_file():
        raise SlimError(f"{path}: is neither a file nor a directory")
    try:
        return directory.read(local) if local.is_dir() else formats.read_file(local)
    except SlimError as error:
        raise SlimError(f"{path}: {error}") from None
