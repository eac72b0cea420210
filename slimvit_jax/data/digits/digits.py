"""tfds builder over sklearn.datasets.load_digits, written as ArrayRecord files without TensorFlow.

The images are the test part of UCI's "Optical Recognition of Handwritten Digits" (Alpaydin, Kaynak 1998, CC BY 4.0),
which scikit-learn carries in its wheel: nothing is downloaded. A builder class has to live in a package folder of its
own, because tfds looks for its metadata beside the class's module.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import shutil
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from slimvit_jax.quiet import quiet

TEST_RECORDS = 360
_LOCK = threading.Lock()  # redirecting the standard streams is no thing for two threads at once


def stratified_split(labels: np.ndarray, test_records: int = TEST_RECORDS) -> tuple[np.ndarray, np.ndarray]:
    """Splits record numbers so that both parts hold the classes in the same proportions; the same on every machine.

    Args:
        labels: (N,) ints.
        test_records: the size of the second part.
    Returns:
        (train, test): sorted int arrays of record numbers.

    The legacy RandomState is used on purpose: numpy freezes its stream, while a Generator's may change between
        versions.
    """
    classes, counts = np.unique(labels, return_counts=True)
    share = counts * test_records / len(labels)
    quota = np.floor(share).astype(int)
    quota[np.argsort(quota - share, kind="stable")[: test_records - quota.sum()]] += 1  # largest remainders
    random = np.random.RandomState(0)
    test = np.sort(
        np.concatenate(
            [random.permutation(np.flatnonzero(labels == c))[:n] for c, n in zip(classes, quota, strict=True)]
        )
    )
    return np.setdiff1d(np.arange(len(labels)), test), test


def _png(pixels: np.ndarray) -> io.BytesIO:
    """The PNG file of an (8, 8) uint8 image. tfds passes encoded bytes through; an array it would encode by
    TensorFlow.
    """
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    stream.seek(0)
    return stream


class Digits8x8(tfds.core.GeneratorBasedBuilder):
    """Records {"image": 8x8x1 PNG, "label": 0..9, "id": the record's number in scikit-learn's order}."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
            "label": tfds.features.ClassLabel(num_classes=10),
            "id": np.int64,
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="1,797 handwritten digits of 8x8 grey levels, as scikit-learn has them, scaled to 0..255.",
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
            homepage="https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # 17 levels, 0..16, kept apart
        train, test = stratified_split(digits.target)
        parts = {"train": train, "test": test}
        return {name: self._generate_examples(images, digits.target, ids) for name, ids in parts.items()}

    def _generate_examples(self, images: np.ndarray, labels: np.ndarray, ids: np.ndarray) -> Any:
        for record in ids:
            yield int(record), {"image": _png(images[record]), "label": int(labels[record]), "id": int(record)}


def prepare(data_dir: str | Path) -> tfds.core.DatasetBuilder:
    """Returns the prepared builder under `data_dir`, preparing it first (about a second) where it is not there.

    Safe against a second process doing the same and against being killed: the files are written under a temporary
    name in `data_dir` and appear by one rename; whoever renames second throws its own copy away. OSErrors pass through.
    """
    data_dir = Path(data_dir)
    builder = Digits8x8(data_dir=str(data_dir), file_format="array_record")
    complete = Path(builder.data_path) / "dataset_info.json"
    if complete.is_file():
        return builder
    data_dir.mkdir(parents=True, exist_ok=True)
    scratch = tempfile.mkdtemp(prefix=".preparing-", dir=data_dir)
    try:
        # tfds announces itself, draws three progress bars and warns of its own half-written folder
        silent = contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO())
        with _LOCK, quiet("absl", level=logging.ERROR), silent[0], silent[1]:
            Digits8x8(data_dir=scratch, file_format="array_record").download_and_prepare()
        target = Path(builder.data_path)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.rename(Path(scratch) / target.relative_to(data_dir), target)
        except OSError:
            if not complete.is_file():
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return Digits8x8(data_dir=str(data_dir), file_format="array_record")
