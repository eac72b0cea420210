"""Where the images come from: `open_source(name, split, data_dir)` gives a random-access source of records.

    source = open_source("digits" | "folder" | "fashion_mnist" | any tfds name, split, data_dir=None, **options)
    len(source); source[i] -> {"image": (H, W, C) uint8 array or encoded bytes, "label": int, "name": str}
    source.num_classes, source.class_names, source.name, source.split, source.native_shape

Every source can be pickled (worker processes get a copy), and nothing here imports TensorFlow.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from slimvit_jax.data.folder import open_folder
from slimvit_jax.data.idx import open_idx
from slimvit_jax.data.source import Record, Source, parse_split, take_part
from slimvit_jax.data.tfds_source import open_digits, open_tfds
from slimvit_jax.errors import SlimError, unknown
from slimvit_jax.keywords import keywords_of
from slimvit_jax.options import Kind, check

__all__ = ["Record", "Source", "open_source", "option_kinds"]

#: How the kinds are opened that are not tfds's; a function's options are its parameters with defaults.
KINDS: dict[str, Callable[..., Source]] = {"digits": open_digits, "fashion_mnist": open_idx, "folder": open_folder}


def option_kinds(name: str) -> Mapping[str, Kind]:
    """The options of a data source by name, and what each may be."""
    return keywords_of(KINDS.get(name, open_tfds))


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
    kinds = option_kinds(name)
    for option in options:
        if option not in kinds:
            raise unknown(f"option of data source {name!r}", option, kinds)
    base, part = parse_split(split)
    source = KINDS.get(name, open_tfds)(name, base, data_dir, **check(kinds, options))
    if len(source) == 0:
        raise SlimError(f"data source {name!r} has no images in split {split!r} (data_dir {data_dir})")
    return source if part is None else take_part(source, split, part)
