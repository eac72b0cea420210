"""Where the images come from: `open_source(name, split, data_dir)` gives a random-access source of records.

    source = open_source("digits" | "folder" | "fashion_mnist" | any tfds name, split, data_dir=None, **options)
    len(source); source[i] -> {"image": (H, W, C) uint8 array or encoded bytes, "label": int, "name": str}
    source.num_classes, source.class_names, source.name, source.split, source.native_shape

Every source can be pickled (worker processes get a copy), and nothing here imports TensorFlow.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from slimvit_jax.data.folder import open_folder
from slimvit_jax.data.idx import open_idx
from slimvit_jax.data.source import Record, Source, parse_split, take_part
from slimvit_jax.data.tfds_source import open_digits, open_tfds
from slimvit_jax.errors import SlimError, unknown

__all__ = ["Record", "Source", "open_source"]

#: Kinds that are not tfds's: how each is opened, and the options it takes.
KINDS: dict[str, tuple[Callable[..., Source], tuple[str, ...]]] = {
    "digits": (open_digits, ()),
    "fashion_mnist": (open_idx, ()),
    "folder": (open_folder, ("allow_missing_classes",)),
}
_TFDS = (open_tfds, ("image_key", "label_key"))


def open_source(name: str, split: str, data_dir: str | os.PathLike[str] | None = None, **options: Any) -> Source:
    """Opens a split of a data set, or a part of one.

    Args:
        name: "digits" (embedded), "fashion_mnist" (IDX files: Debian's dataset-fashion-mnist, or `data_dir`), "folder"
            (`data_dir`/train/CLASS/*.jpg and so on, or `data_dir`/CLASS/*.jpg), or a tfds data set prepared as
            ArrayRecord ("cifar10", "imagenet2012", "NAME/CONFIG:VERSION").
        split: "train", "validation", "test" or a name the data set itself uses; a part of it is written
            "train[:80%]", "train[80%:]" or "train[100:200]" (see `source.take_part`).
        data_dir: where the files are; each kind has a default, except "folder".
        **options: "folder": allow_missing_classes=False. tfds: image_key="image", label_key="label".
    Raises:
        SlimError: unknown name, split or option, a folder that is missing or empty, no images, labels out of range.
    """
    opener, allowed = KINDS.get(name, _TFDS)
    for option in options:
        if option not in allowed:
            raise unknown(f"option of data source {name!r}", option, allowed)
    base, part = parse_split(split)
    source = opener(name, base, data_dir, **options)
    if len(source) == 0:
        raise SlimError(f"data source {name!r} has no images in split {split!r} (data_dir {data_dir})")
    return source if part is None else take_part(source, split, part)
