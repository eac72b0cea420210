"""Data sets of tensorflow-datasets, read from ArrayRecord files without TensorFlow; the digits are one of them."""

from __future__ import annotations

import fnmatch
import os
import re
from pathlib import Path
from typing import Any

from slimvit_jax.data.source import Record, Source, default_data_dir, pick_split
from slimvit_jax.errors import SlimError, first_line, unknown
from slimvit_jax.images.decode import BadImage


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
        name = self.record_name(index)
        try:
            record = self._data[index]
        except Exception as error:  # the ArrayRecord reader raises RuntimeError and others on damaged files
            raise BadImage(f"cannot read {name}: {first_line(error)}") from error
        image, label = self._keys
        return self.record(record[image], int(record[label]), name)


def open_digits(name: str, split: str, data_dir: str | os.PathLike[str] | None) -> Source:
    """The embedded digits, prepared on first use."""
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


def open_tfds(
    name: str, split: str, data_dir: str | os.PathLike[str] | None, image_key: str = "image", label_key: str = "label"
) -> Source:
    """A prepared data set "NAME", "NAME/CONFIG", "NAME:VERSION" or both; without a version the newest one there is."""
    import tensorflow_datasets as tfds

    where = os.path.expanduser(str(data_dir or os.environ.get("TFDS_DATA_DIR") or Path("~") / "tensorflow_datasets"))
    present = [path.name for path in _folders(Path(where))]
    folder, _, version = name.partition(":")
    if folder.split("/")[0] not in present:
        raise unknown(
            "data source", name, ["digits", "fashion_mnist", "folder", *(f"{p} (tfds, {where})" for p in present)]
        )
    found = _versions(Path(where, folder))
    wanted = [v for v in found if fnmatch.fnmatchcase(v, version or "*")]
    if found and not wanted:
        raise unknown(f"version of tfds data set {folder!r} under {where!r}", version, found)
    configs = [f"{folder}/{c.name}" for c in _folders(Path(where, folder)) if _versions(c)] if not found else []
    if configs and version:
        raise SlimError(f"tfds data set {name!r}: a version goes with a configuration; choices: {', '.join(configs)}")
    try:
        # From the files alone: the builder's own code may import TensorFlow.
        if wanted:
            builder = tfds.builder_from_directory(Path(where, folder, wanted[-1]))
        else:  # a data set with configurations, none named: tfds knows its default
            builder = tfds.builder(name, data_dir=where, file_format="array_record")
    except Exception as error:  # tfds raises many kinds
        hint = f"; configurations there: {', '.join(configs)}" if configs else ""
        reason = first_line(error)
        raise SlimError(f"cannot open tfds data set {name!r} under {where!r}: {reason}{hint}") from error
    if not builder.is_prepared() or builder.info.file_format.value != "array_record":
        raise SlimError(
            f"tfds data set {name!r} under {where!r} is not prepared as array_record; prepare it once with "
            f"tfds.builder({name!r}, data_dir={where!r}, file_format='array_record').download_and_prepare()"
        )
    return TfdsSource(name, split, builder, image_key, label_key)


def _folders(folder: Path) -> list[Path]:
    """What folders are in `folder`; none where that is none or cannot be read."""
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir())
    except OSError:
        return []


def _versions(folder: Path) -> list[str]:
    """The names of the versions in `folder`, oldest first: 9.0.0 comes before 10.0.0."""
    versions = [path.name for path in _folders(folder) if re.fullmatch(r"\d+\.\d+\.\d+", path.name)]
    return sorted(versions, key=lambda name: [int(part) for part in name.split(".")])
