"""Image folders: ROOT/SPLIT/CLASS/**/*.jpg as torchvision's, or ROOT/CLASS/**/*.jpg; classes are the sorted names."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from slimvit_jax.data.source import SPLIT_SYNONYMS, Record, Source, pick_split
from slimvit_jax.errors import SlimError
from slimvit_jax.text import option

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif")
SPLITS = {"train", *SPLIT_SYNONYMS, *(name for names in SPLIT_SYNONYMS.values() for name in names)}


class FolderSource(Source):
    """The files of one split. The paths are one fixed-width bytes array: a million of them pickle at once to a
    worker.
    """

    labels: np.ndarray

    def __init__(self, name: str, split: str, root: Path, files: list[tuple[str, int]], class_names: list[str]) -> None:
        super().__init__(name, split, class_names)
        self._root = str(root)
        self._paths = np.array([os.fsencode(path) for path, _ in files], dtype=bytes)
        self.labels = np.array([label for _, label in files], np.int32)

    def __len__(self) -> int:
        return len(self._paths)

    def record_name(self, index: int) -> str:
        """The file's whole path."""
        return os.path.join(self._root, os.fsdecode(bytes(self._paths[index])))

    def __getitem__(self, index: int) -> Record:
        path = self.record_name(index)
        with open(path, "rb") as file:
            return self.record(file.read(), int(self.labels[index]), path)


def class_folders(directory: Path) -> list[str]:
    """The names of the folders in `directory`, sorted; hidden ones and links onto a folder around them left out."""
    around = _around(directory) | {_identity(directory)}
    with os.scandir(directory) as entries:
        names = [entry.name for entry in entries if _is_folder(entry) and not entry.name.startswith(".")]
    return sorted(name for name in names if _identity(directory / name) not in around)


def class_files(directory: Path, class_name: str) -> list[str]:
    """The image files below directory/class_name, sorted, relative to `directory`.

    Hidden files and folders are no data, nor is what is no regular file: a pipe would be waited for. Links are
    followed, but every folder counts once, so that a link onto a folder around it leads nowhere. A link to a file that
    is not there counts: it is an image that cannot be read.
    """
    seen = _around(directory / class_name)
    found, waiting = [], [str(directory / class_name)]
    while waiting:
        folder = waiting.pop()
        if (identity := _identity(folder)) in seen:
            continue
        seen.add(identity)
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if _is_folder(entry):
                    waiting.append(entry.path)
                elif entry.name.lower().endswith(SUFFIXES) and _is_file_or_broken(entry):
                    found.append(os.path.relpath(entry.path, directory))
    return sorted(found)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def _is_file_or_broken(entry: os.DirEntry[str]) -> bool:
    if not entry.is_symlink():
        return entry.is_file()
    return os.path.isfile(entry.path) or not os.path.exists(entry.path)


def _around(folder: Path) -> set[tuple[int, int]]:
    """The folders that hold this one."""
    return {_identity(parent) for parent in folder.resolve().parents}


def _identity(folder: str | Path) -> tuple[int, int]:
    """What tells a folder from any other, whatever the path to it."""
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def open_folder(
    name: str, split: str, data_dir: str | os.PathLike[str] | None, allow_missing_classes: bool = False
) -> Source:
    """Opens ROOT/SPLIT; "validation" also finds val/ or test/. The classes are those of ROOT/train.

    A folder without splits, ROOT/CLASS/*.jpg, has one split, "train": all images; `open_source` takes parts of it.
    `allow_missing_classes` lets a split lack images of some classes.

    Raises:
        SlimError: the folder, its split, its classes or the images of a class are missing, or a split has a class that
            train has not.
    """
    if not data_dir:
        raise SlimError('data source "folder" needs data_dir: the folder that holds train/CLASS/*.jpg or CLASS/*.jpg')
    root = Path(data_dir).expanduser()
    if not root.is_dir():
        raise SlimError(f"image folder {str(root)!r} is not there")
    try:
        return _list_folder(name, split, root, allow_missing_classes)
    except OSError as error:
        raise SlimError(f"cannot list image folder {str(root)!r}: {error}") from error


def _list_folder(name: str, split: str, root: Path, allow_missing_classes: bool) -> Source:
    directory = _split_folder(split, root)
    own = class_folders(directory)
    whole = directory if directory == root or not (root / "train").is_dir() else root / "train"
    classes = class_folders(whole)
    if not own or not classes:
        raise SlimError(f"image folder {str(directory)!r} has no class folders: expected {directory.name}/CLASS/*.jpg")
    if foreign := sorted(set(own) - set(classes)):
        raise SlimError(f"classes of {str(directory)!r} that train/ has not: {_some(foreign)}")
    files: list[tuple[str, int]] = []
    empty = []
    for label, class_name in enumerate(classes):
        paths = class_files(directory, class_name) if class_name in own else []
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
        raise SlimError(
            f"image folder {str(directory)!r} {fault}; {option('data', 'allow_missing_classes', True)} accepts that"
        )
    return FolderSource(name, split, directory, files, classes)


def _split_folder(split: str, root: Path) -> Path:
    """The folder of a split's classes: ROOT/SPLIT, or ROOT itself where its folders are the classes."""
    folders = class_folders(root)
    known = [name for name in folders if name in {split, *SPLITS}]
    if set(folders) > set(known) and not any(class_folders(root / name) for name in known):
        if split == "train":
            return root
        raise SlimError(
            f"image folder {str(root)!r} has no split {split!r}: its folders are classes, so that all images are in"
            " 'train'; parts of it are splits such as 'train[:80%]' and 'train[80%:]'"
        )
    return root / pick_split(f"image folder {str(root)!r}", split, folders)


def _some(names: list[str], limit: int = 5) -> str:
    """The first few names, and how many more there are."""
    return ", ".join(map(repr, names[:limit])) + (f" and {len(names) - limit} more" if len(names) > limit else "")
