"""What a source of images is: the base of all kinds, the parts of a split, and the names that splits go by."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TypedDict

import numpy as np

from slimvit_jax.errors import SlimError, unknown
from slimvit_jax.images.preprocess import Preprocess

SPLIT_SYNONYMS = {"validation": ("val", "valid", "test"), "test": ("validation", "val"), "val": ("validation", "test")}
_SPLIT = re.compile(r"([^\[\]]+)(?:\[(-?\d+(?:\.\d+)?%|-?\d+)?:(-?\d+(?:\.\d+)?%|-?\d+)?\])?")
_GOLDEN = (5**0.5 - 1) / 2


class Record(TypedDict):
    """One image: pixels (H, W, C) uint8 or the bytes of an image file, the class number, and what to call it in a
    message.
    """

    image: np.ndarray | bytes
    label: int
    name: str


class Source:
    """Base of all sources: the facts about a split, and the checks that hold for each.

    Attributes:
        name, split: what was asked for, e.g. "digits", "train".
        class_names: one name per class, in the order of the class numbers.
        native_shape: (height, width, channels) where all images share it, else None.
        labels: (N,) int class numbers where they are known without reading images, else None.
    """

    labels: np.ndarray | None = None

    def __init__(
        self, name: str, split: str, class_names: Iterable[str], native_shape: tuple[int, int, int] | None = None
    ) -> None:
        self.name, self.split, self.class_names, self.native_shape = name, split, tuple(class_names), native_shape

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> Record:
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name}/{self.split}, {len(self)} images, {self.num_classes} classes)"

    def record_name(self, index: int) -> str:
        """What to call a record in a message, even if it cannot be read."""
        return f"{self.name}/{self.split}[{index}]"

    def record(self, image: np.ndarray | bytes, label: int, name: str) -> Record:
        """Builds a record; a label outside the classes is a SlimError that names it."""
        if not 0 <= label < self.num_classes:
            raise SlimError(
                f"label of {name} in {self.name}/{self.split} is {label}; "
                f"the {self.num_classes} classes are 0..{self.num_classes - 1}"
            )
        return {"image": image, "label": label, "name": name}


class Subset(Source):
    """Some records of another source, in its order; everything else is the other's."""

    def __init__(self, source: Source, split: str, indices: np.ndarray) -> None:
        super().__init__(source.name, split, source.class_names, source.native_shape)
        self._source, self._indices = source, indices
        self.labels = None if source.labels is None else source.labels[indices]

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Record:
        return self._source[int(self._indices[index])]

    def record_name(self, index: int) -> str:
        return self._source.record_name(int(self._indices[index]))


def parse_split(split: str) -> tuple[str, tuple[str | None, str | None] | None]:
    """("train", ("80%", None)) for "train[80%:]", ("train", None) for "train"; anything else is a SlimError."""
    match = _SPLIT.fullmatch(split.strip())
    if match is None:
        raise SlimError(
            f"split {split!r} is neither a name nor a part such as train[:80%], train[80%:] or train[100:200]"
        )
    base, start, stop = match.groups()
    return base.strip(), (start, stop) if "[" in split else None


def take_part(source: Source, split: str, part: tuple[str | None, str | None]) -> Source:
    """The part of a source from one bound to another, each a count or a percentage, negative from the end.

    Where the labels are known without reading images, they are cut from an order in which the classes take turns in
    proportion to their sizes, and the images of a class, sorted by name, come spread out evenly (`interleaved`): every
    part has the classes' proportions to within an image, the parts on both sides of a bound are disjoint and together
    everything, and nothing is random. Other sources (tfds, which shuffles once when it writes) are cut as they lie.

    Raises:
        SlimError: a bound beyond the source, or no image between the two.
    """
    count = len(source)
    start, stop = (_bound(split, text, count, default) for text, default in zip(part, (0, count), strict=True))
    if start >= stop:
        raise SlimError(f"split {split!r} of {source.name} is empty: it goes from {start} to {stop} of {count} images")
    order = np.arange(count) if source.labels is None else interleaved(source.labels)
    return Subset(source, split, np.sort(order[start:stop]))


def limited(source: Source, count: int | None) -> Source:
    """So many images of a source, of all classes in proportion; all of them for None or more than there are."""
    if count is None or count >= len(source):
        return source
    return take_part(source, f"{source.split}[:{count}]", (None, str(count)))


def _bound(split: str, text: str | None, count: int, default: int) -> int:
    if text is None:
        return default
    largest, given = (100.0, float(text[:-1])) if text.endswith("%") else (float(count), float(text))
    if abs(given) > largest:
        raise SlimError(f"split {split!r}: {text} is beyond the {count} images")
    return round(count * ((given if given >= 0 and not text.startswith("-") else largest + given) / largest))


def interleaved(labels: np.ndarray) -> np.ndarray:
    """(N,) int: an order of records in which every run of them has the classes' proportions, to within a record.

    Record number i of a class gets its place in the class from the fractional part of i times the golden ratio, whose
    first values cover 0..1 evenly however many one takes, and the classes are merged by (place + 1/2) / size.

    >>> interleaved(np.array([0, 0, 0, 0, 1, 1])).tolist()
    [0, 4, 2, 1, 5, 3]
    """
    keys = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        spread = np.argsort(np.arange(len(members)) * _GOLDEN % 1, kind="stable")
        keys[members[spread]] = (np.arange(len(members)) + 0.5) / len(members)
    return np.argsort(keys, kind="stable")


def samples(source: Source, count: int) -> list[Record]:
    """So many images to look at, of as many classes as there are; the same ones every time.

    Where the labels are not known the first images are taken: tfds shuffles when it writes.
    """
    count = min(count, len(source))
    if source.labels is None:
        return [source[index] for index in range(count)]
    by_class = [np.flatnonzero(source.labels == label) for label in np.unique(source.labels)]
    shown = min(count, len(by_class))
    apart = [by_class[place * len(by_class) // shown] for place in range(shown)]
    turns = [members[turn] for turn in range(count) for members in apart if turn < len(members)]
    return [source[int(index)] for index in turns[:count]]


def pixels_of(records: Iterable[Record], preprocess: Preprocess) -> np.ndarray:
    """(B, H, W, C) uint8 of records, resized and cropped as a model wants them."""
    return np.stack([preprocess.pixels(record["image"], record["name"]) for record in records])


def default_data_dir() -> Path:
    """$SLIMVIT_DATA_DIR, or slimvit_jax/data under the user's cache folder."""
    if given := os.environ.get("SLIMVIT_DATA_DIR"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "slimvit_jax" / "data"


def pick_split(name: str, split: str, available: Iterable[str]) -> str:
    """The available split that `split` means: itself, or a synonym ("validation" for a set that only has "test")."""
    available = tuple(available)
    for candidate in (split, *SPLIT_SYNONYMS.get(split, ())):
        if candidate in available:
            return candidate
    raise unknown(f"split of {name}", split, available)
