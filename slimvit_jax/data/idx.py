"""MNIST-style IDX files (optionally gzipped): big-endian header 0, 0, type, rank, sizes; then the values.

Format: the description under the table on https://yann.lecun.com/exdb/mnist; only unsigned bytes (type 8) occur here.
"""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from pathlib import Path

import numpy as np

from slimvit_jax.data.source import Record, Source, pick_split
from slimvit_jax.errors import SlimError

DEBIAN_FOLDER = "/usr/share/datasets/fashion-mnist"
PREFIXES = {"train": "train", "test": "t10k"}
FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
LARGEST = 1 << 31  # bytes one file may unpack to: a damaged header must not ask for all memory


def read_idx(path: str | os.PathLike[str], rank: int) -> np.ndarray:
    """Reads an IDX file of unsigned bytes with `rank` dimensions. Damage of any kind is a SlimError naming the file."""
    path = Path(path)
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
            head = file.read(4)
            if len(head) < 4 or head[:3] != b"\0\0\x08" or head[3] != rank:
                raise SlimError(
                    f"{str(path)!r} is not an IDX file of bytes with {rank} dimensions: it starts {head.hex()}"
                )
            sizes = struct.unpack(f">{rank}I", file.read(4 * rank))
            size = 1
            for length in sizes:
                size *= length
            if not 0 < size <= LARGEST:
                raise SlimError(f"IDX file {str(path)!r} claims the shape {sizes}: {size} bytes, allowed 1..{LARGEST}")
            data = file.read(size + 1)
    except SlimError:
        raise
    except (OSError, EOFError, zlib.error, struct.error, MemoryError) as error:
        raise SlimError(f"cannot read IDX file {str(path)!r}: {error}") from error
    if len(data) != size:
        held = "more" if len(data) > size else str(len(data))
        raise SlimError(f"IDX file {str(path)!r} holds {held} bytes of data where its header promises {size}")
    return np.frombuffer(data, np.uint8).reshape(sizes)


class ArraySource(Source):
    """Images held in one array (N, H, W, C) uint8, labels (N,)."""

    labels: np.ndarray

    def __init__(
        self, name: str, split: str, images: np.ndarray, labels: np.ndarray, class_names: tuple[str, ...]
    ) -> None:
        super().__init__(name, split, class_names, tuple(images.shape[1:]))  # type: ignore[arg-type]
        self._images, self.labels = images, labels
        if len(images) != len(labels):
            raise SlimError(f"{name}/{split} has {len(images)} images and {len(labels)} labels")
        if wrong := np.flatnonzero((labels < 0) | (labels >= self.num_classes)).tolist():
            self.record(images[wrong[0]], int(labels[wrong[0]]), f"image {wrong[0]}")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Record:
        return self.record(self._images[index], int(self.labels[index]), self.record_name(index))


def open_idx(name: str, split: str, data_dir: str | os.PathLike[str] | None) -> Source:
    """Opens Fashion-MNIST (or any MNIST-like set of 10 classes) from the four IDX files in `data_dir`, gzipped or
    not.
    """
    root = Path(data_dir if data_dir is not None else DEBIAN_FOLDER).expanduser()
    prefix = PREFIXES[pick_split(name, split, PREFIXES)]
    if not root.is_dir():
        raise SlimError(
            f"no folder {str(root)!r} for {name}: install Debian's package dataset-fashion-mnist, or give a data_dir "
            "with train-images-idx3-ubyte.gz and the other three files"
        )
    arrays = []
    for kind, rank in (("images", 3), ("labels", 1)):
        stem = f"{prefix}-{kind}-idx{rank}-ubyte"
        paths = [p for p in (root / stem, root / f"{stem}.gz") if p.is_file()]
        if not paths:
            raise SlimError(f"{name} lacks the file {stem} or {stem}.gz in {str(root)!r}")
        arrays.append(read_idx(paths[0], rank))
    return ArraySource(name, split, arrays[0][..., None], arrays[1].astype(np.int32), FASHION)
