"""Where the images come from: `open_source(name, split, data_dir)` gives a random-access source of records.

    source = open_source("digits" | "folder" | "fashion_mnist" | any tfds name, split, data_dir=None, **options)
    len(source); source[i] -> {"image": (H, W, C) uint8 array or encoded bytes, "label": int, "name": str}
    source.num_classes, source.class_names, source.name, source.split, source.native_shape

Every source can be pickled (worker processes get a copy), and nothing here imports TensorFlow.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from slimvit_jax.data.decode import BadImage
from slimvit_jax.errors import SlimError, unknown

SPLIT_SYNONYMS = {"validation": ("val", "valid", "test"), "test": ("validation", "val"), "val": ("validation", "test")}


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
    """

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

    def record(self, image: np.ndarray | bytes, label: int, name: str) -> Record:
        """Builds a record; a label outside the classes is a SlimError that names it."""
        if not 0 <= label < self.num_classes:
            raise SlimError(
                f"label of {name} in {self.name}/{self.split} is {label}; "
                f"the {self.num_classes} classes are 0..{self.num_classes - 1}"
            )
        return {"image": image, "label": label, "name": name}


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


def open_source(name: str, split: str, data_dir: str | os.PathLike[str] | None = None, **options: Any) -> Source:
    """Opens a split of a data set.

    Args:
        name: "digits" (embedded), "fashion_mnist" (IDX files: Debian's dataset-fashion-mnist, or `data_dir`), "folder"
            (`data_dir`/train/CLASS/*.jpg and so on), or a tfds data set prepared as ArrayRecord ("cifar10",
            "imagenet2012", "NAME/CONFIG:VERSION").
        split: "train", "validation", "test" or a name the data set itself uses.
        data_dir: where the files are; each kind has a default, except "folder".
        **options: "folder": allow_missing_classes=False. tfds: image_key="image", label_key="label".
    Raises:
        SlimError: unknown name, split or option, a folder that is missing or empty, no images, labels out of range.
    """
    from slimvit_jax.data import folder, idx

    kinds: dict[str, Any] = {"digits": _open_digits, "fashion_mnist": idx.open_idx, "folder": folder.open_folder}
    opener = kinds.get(name, _open_tfds)
    allowed = {"folder": ("allow_missing_classes",), "digits": (), "fashion_mnist": ()}.get(
        name, ("image_key", "label_key")
    )
    for option in options:
        if option not in allowed:
            raise unknown(f"option of data source {name!r}", option, allowed)
    source = opener(name, split, data_dir, **options)
    if len(source) == 0:
        raise SlimError(f"data source {name!r} has no images in split {split!r} (data_dir {data_dir})")
    return source


class TfdsSource(Source):
    """A split of a prepared tfds builder, read as encoded bytes, so that decoding is ours and no TensorFlow is
    needed.
    """

    def __init__(self, name: str, split: str, builder: Any, image_key: str = "image", label_key: str = "label") -> None:
        import tensorflow_datasets as tfds

        features = builder.info.features
        for key, kind in ((image_key, tfds.features.Image), (label_key, tfds.features.ClassLabel)):
            if key not in features or not isinstance(features[key], kind):
                having = [k for k, feature in features.items() if isinstance(feature, kind)]
                raise unknown(f"{kind.__name__} feature of {name}", key, having)
        shape = features[image_key].shape
        native = tuple(shape) if shape is not None and len(shape) == 3 and None not in shape else None
        super().__init__(name, split, features[label_key].names, native)
        self._keys = (image_key, label_key)
        self._data = builder.as_data_source(
            pick_split(name, split, builder.info.splits), decoders={image_key: tfds.decode.SkipDecoding()}
        )

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> Record:
        name = f"{self.name}/{self.split}[{index}]"
        try:
            record = self._data[index]
        except Exception as error:  # the ArrayRecord reader raises RuntimeError and others on damaged files
            raise BadImage(f"cannot read {name}: {str(error).splitlines()[0][:200]}") from error
        image, label = self._keys
        return self.record(record[image], int(record[label]), name)


def _open_digits(name: str, split: str, data_dir: str | os.PathLike[str] | None) -> Source:
    from slimvit_jax.data.digits import prepare

    pick_split(name, split, ("train", "test"))
    directory = Path(data_dir).expanduser() if data_dir is not None else default_data_dir()
    try:
        builder = prepare(directory)
    except OSError as error:
        raise SlimError(
            f"cannot prepare the digits under {str(directory)!r}: {error}; give another data_dir"
        ) from error
    return TfdsSource(name, split, builder)


def _open_tfds(
    name: str, split: str, data_dir: str | os.PathLike[str] | None, image_key: str = "image", label_key: str = "label"
) -> Source:
    import tensorflow_datasets as tfds

    where = os.path.expanduser(str(data_dir or os.environ.get("TFDS_DATA_DIR") or Path("~") / "tensorflow_datasets"))
    base = name.split("/")[0].split(":")[0]
    present = sorted(p.name for p in Path(where).iterdir() if p.is_dir()) if os.path.isdir(where) else []
    if base not in present:
        raise unknown(
            "data source", name, ["digits", "fashion_mnist", "folder", *(f"{p} (tfds, {where})" for p in present)]
        )
    try:
        # From the files alone: the builder's own code may import TensorFlow.
        config, _, version = name.partition(":")
        folders = sorted(Path(where, config).glob(version or "*.*.*"), key=lambda p: p.name)
        if not folders:  # a data set with configurations, none named: tfds knows its default
            builder = tfds.builder(name, data_dir=where, file_format="array_record")
        else:
            builder = tfds.builder_from_directory(folders[-1])
    except Exception as error:  # tfds raises many kinds
        raise SlimError(f"cannot open tfds data set {name!r} under {where!r}: {str(error).splitlines()[0]}") from error
    if not builder.is_prepared() or builder.info.file_format.value != "array_record":
        raise SlimError(
            f"tfds data set {name!r} under {where!r} is not prepared as array_record; prepare it once with "
            f"tfds.builder({name!r}, data_dir={where!r}, file_format='array_record').download_and_prepare()"
        )
    return TfdsSource(name, split, builder, image_key, label_key)
