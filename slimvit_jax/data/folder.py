"""Image folders laid out as torchvision's: ROOT/SPLIT/CLASS/**/*.jpg; the classes are the sorted folder names."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from slimvit_jax.data.sources import Record, Source, pick_split
from slimvit_jax.errors import SlimError

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif")


class FolderSource(Source):
    """The files of one split. The paths are one fixed-width bytes array: a million of them pickle at once to a
    worker.
    """

    def __init__(self, name: str, split: str, root: Path, files: list[tuple[str, int]], class_names: list[str]) -> None:
        super().__init__(name, split, class_names)
        self._root = str(root)
        self._paths = np.array([os.fsencode(path) for path, _ in files], dtype=bytes)
        self._labels = np.array([label for _, label in files], np.int32)

    def __len__(self) -> int:
        return len(self._labels)

    def path(self, index: int) -> str:
        """The file's whole path."""
        return os.path.join(self._root, os.fsdecode(bytes(self._paths[index])))

    def __getitem__(self, index: int) -> Record:
        path = self.path(index)
        with open(path, "rb") as file:
            return self.record(file.read(), int(self._labels[index]), path)


def class_folders(directory: Path) -> list[str]:
    """The names of the folders in `directory`, sorted, hidden ones left out."""
    return sorted(entry.name for entry in os.scandir(directory) if entry.is_dir() and not entry.name.startswith("."))


def class_files(directory: Path, class_name: str) -> list[str]:
    """The image files below directory/class_name, sorted, relative to `directory`."""
    found = []
    for folder, _, names in os.walk(directory / class_name, followlinks=True):
        found += [os.path.join(folder, name) for name in names if name.lower().endswith(SUFFIXES) and name[0] != "."]
    return sorted(os.path.relpath(path, directory) for path in found)


def open_folder(
    name: str, split: str, data_dir: str | os.PathLike[str] | None, allow_missing_classes: bool = False
) -> Source:
    """Opens ROOT/SPLIT; "validation" also finds val/ or test/. The classes are those of ROOT/train.

    Raises SlimError where the folder, its split, its classes or the images of a class are missing, or where a split
    has a class that train has not. `allow_missing_classes` lets a split lack images of some classes.
    """
    if data_dir is None:
        raise SlimError('data source "folder" needs data_dir: the folder that holds train/CLASS/*.jpg')
    root = Path(data_dir).expanduser()
    if not root.is_dir():
        raise SlimError(f"image folder {str(root)!r} is not there")
    try:
        return _list_folder(name, split, root, allow_missing_classes)
    except OSError as error:
        raise SlimError(f"cannot list image folder {str(root)!r}: {error}") from error


def _list_folder(name: str, split: str, root: Path, allow_missing_classes: bool) -> Source:
    found = pick_split(f"image folder {str(root)!r}", split, class_folders(root))
    directory = root / found
    own = class_folders(directory)
    classes = class_folders(root / "train") if (root / "train").is_dir() else own
    if not own or not classes:
        raise SlimError(f"image folder {str(directory)!r} has no class folders: expected {found}/CLASS/*.jpg")
    if foreign := sorted(set(own) - set(classes)):
        raise SlimError(f"classes of {str(directory)!r} that train/ has not: {_some(foreign)}")
    files: list[tuple[str, int]] = []
    empty = []
    for label, class_name in enumerate(classes):
        paths = class_files(directory, class_name)
        files += [(path, label) for path in paths]
        if not paths:
            empty.append(class_name)
    if not files:
        raise SlimError(f"image folder {str(directory)!r} has no images; suffixes read: {' '.join(SUFFIXES)}")
    if empty and not allow_missing_classes:
        missing = [c for c in empty if c not in own]
        fault = (
            f"lacks classes of train/: {_some(missing)}" if missing else f"has classes without images: {_some(empty)}"
        )
        raise SlimError(f"image folder {str(directory)!r} {fault}; allow_missing_classes=True accepts that")
    return FolderSource(name, split, directory, files, classes)


def _some(names: list[str], limit: int = 5) -> str:
    """The first few names, and how many more there are."""
    return ", ".join(map(repr, names[:limit])) + (f" and {len(names) - limit} more" if len(names) > limit else "")
