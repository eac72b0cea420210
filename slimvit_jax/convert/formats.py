"""The kinds of single files that hold arrays by name: .safetensors, .npz, torch's, and an index of several of them."""

from __future__ import annotations

import argparse
import json
import pathlib
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from slimvit_jax.errors import SlimError, first_line
from slimvit_jax.files import atomic_path, read_text

StateDict = dict[str, Any]
#: What every kind of file has a form for; other floating types are written as float32, which holds them all exactly.
_EVERYWHERE = tuple(map(np.dtype, (np.float16, np.float32, np.float64)))
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
#: The names of weights that transformers and the hub give to files, best first.
IN_A_FOLDER = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def kind_of(path: Path) -> str:
    """The suffix that says how a file is read: ".index.json" is one."""
    return ".index.json" if path.name.endswith(".index.json") else path.suffix.lower()


def _portable(array: np.ndarray, *also: np.dtype) -> np.ndarray:
    return array if array.dtype in (*_EVERYWHERE, *also) or array.dtype.kind in "iu" else array.astype(np.float32)


def _read_safetensors(path: Path) -> Any:
    import safetensors

    with safetensors.safe_open(path, "np") as file:
        return {name: _tensor(file, name) for name in file.keys()}  # noqa: SIM118  # it is no mapping


def _tensor(file: Any, name: str) -> np.ndarray:
    try:
        return file.get_tensor(name)
    except (AttributeError, TypeError):  # a type that numpy has no name for
        raise SlimError(f"{name} is of type {file.get_slice(name).get_dtype()}, which is not read") from None


def _write_safetensors(path: Path, state: StateDict) -> None:
    import safetensors.numpy

    with atomic_path(path) as temporary:
        temporary.touch()  # with the permissions of any new file
        mode = temporary.stat().st_mode
        # "pt" is what torch's and timm's readers look for
        plain = {name: _portable(array, _BFLOAT16) for name, array in state.items()}
        safetensors.numpy.save_file(plain, temporary, metadata={"format": "pt"})
        temporary.chmod(mode)  # safetensors gives its files to their owner alone


def _read_npz(path: Path) -> Any:
    archive = np.load(path, allow_pickle=False)
    if isinstance(archive, np.ndarray):
        raise SlimError("holds a single array, not named ones")
    with archive:
        state = {name: archive[name] for name in archive.files}
    # numpy writes bfloat16 as two bytes without a type, and nothing else that a state dict holds
    return {name: array.view(_BFLOAT16) if array.dtype == "V2" else array for name, array in state.items()}


def _write_npz(path: Path, state: StateDict) -> None:
    plain: dict[str, Any] = {name: _portable(array) for name, array in state.items()}
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **plain)


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise SlimError(
            "torch's files need torch: pip install -r requirements-torch.txt, or use .safetensors"
        ) from error
    return torch


def _read_torch(path: Path) -> Any:
    torch = _torch()
    # Training scripts leave plain values beside the weights: their arguments, paths, numpy's numbers.
    scalar = np.float64(0).__reduce__()[0]
    numbers = [type(np.dtype(t)) for t in (np.float64, np.float32, np.int64, np.bool_)]
    values: list[Any] = [argparse.Namespace, pathlib.PosixPath, pathlib.PurePosixPath, np.dtype, *numbers]
    values += [scalar, (scalar, "numpy.core.multiarray.scalar")]
    try:
        with torch.serialization.safe_globals(values):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        found = re.search(r"GLOBAL (\S+) was not an allowed", str(error))
        if found:
            raise SlimError(
                f"holds a pickled object ({found[1]}), not arrays alone; load it where its code is and save "
                "its state_dict()"
            ) from None
        if "TorchScript" in str(error):
            raise SlimError("is a TorchScript program; save the state_dict() of torch.jit.load(...)") from None
        raise


def _write_torch(path: Path, state: StateDict) -> None:
    torch = _torch()

    def tensor(array: np.ndarray) -> Any:
        if array.dtype == _BFLOAT16:
            return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
        return torch.from_numpy(np.array(_portable(array)))

    tensors = {name: tensor(array) for name, array in state.items()}
    with atomic_path(path) as temporary:
        torch.save(tensors, temporary)


def _index(path: Path) -> Mapping[str, str]:
    """Name of every array -> the file beside the index that has it."""
    index = json.loads(read_text(path))
    places = index.get("weight_map") if isinstance(index, Mapping) else None
    if not isinstance(places, Mapping) or not places:
        raise SlimError("no index of a sharded checkpoint: it has no weight_map")
    for place in places.values():
        plain = isinstance(place, str) and Path(place).name == place
        if not plain or kind_of(Path(place)) not in (".safetensors", ".bin"):
            raise SlimError(f"names the file {place!r}; expected .safetensors or .bin files beside the index")
    return places


def shards(path: Path) -> list[str]:
    """The names of the files of a sharded checkpoint, from its index.

    Raises:
      SlimError: it is no such index.
    """
    try:
        return list(dict.fromkeys(_index(path).values()))
    except (SlimError, ValueError) as error:
        raise SlimError(f"{path}: {error}") from None


def _read_index(path: Path) -> Any:
    """The arrays of all files that the index of a sharded checkpoint names."""
    places = _index(path)
    state: StateDict = {}
    for name in dict.fromkeys(places.values()):
        if not path.with_name(name).is_file():
            raise SlimError(f"names the file {name!r}, which is not there")
        try:
            state |= read_file(path.with_name(name))
        except SlimError as error:
            raise SlimError(f"{name}: {error}") from None
    missing = [name for name in places if name not in state]
    if missing:
        raise SlimError(f"promises {missing[0]}, which {places[missing[0]]} does not hold ({len(missing)} such names)")
    return state


def read_file(path: Path) -> Mapping[str, Any]:
    """What a file of one of READERS' kinds holds.

    Raises:
      SlimError: one line without the path, for a truncated or foreign file too.
    """
    try:
        content = READERS[kind_of(path)](path)
        if not isinstance(content, Mapping):
            raise SlimError(f"holds a {type(content).__name__}, not a state dict")
        return content
    except SlimError:
        raise
    except Exception as error:  # readers raise their own kinds of errors for truncated and foreign files
        raise SlimError(f"not a complete {kind_of(path)} file ({type(error).__name__}: {first_line(error)})") from error


READERS: dict[str, Callable[[Path], Any]] = {
    ".safetensors": _read_safetensors,
    ".npz": _read_npz,
    ".pth": _read_torch,
    ".pt": _read_torch,
    ".bin": _read_torch,
    ".ckpt": _read_torch,
    ".tar": _read_torch,  # name.pth.tar
    ".index.json": _read_index,
}
WRITERS: dict[str, Callable[[Path, StateDict], None]] = {
    ".safetensors": _write_safetensors,
    ".pth": _write_torch,
    ".npz": _write_npz,
}
