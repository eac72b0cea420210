"""Batches as random access: batch s is a pure function of (source, settings, seed, s). The pipeline only schedules
them.

That one property gives all that a training run needs: the same data whatever the number of workers, a resume at the
exact batch by remembering one number, and process shards that put together are the batch of one process.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from slimvit_jax.data.augment import Augment, Box, CropAugment, erase, shift_batch
from slimvit_jax.data.source import Source
from slimvit_jax.errors import SlimError
from slimvit_jax.images.decode import BadImage, decode
from slimvit_jax.images.preprocess import Preprocess

ENDLESS = 1 << 40  # training batches: more than anybody will draw
CACHE_BYTES = 1 << 28  # sets whose decoded pixels stay below this are decoded once
Batch = dict[str, np.ndarray]


@dataclass(frozen=True)
class Shard:
    """This process's part of every global batch: rows [start, start + local) of `size`."""

    size: int
    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if self.size < 1 or self.count < 1 or not 0 <= self.index < self.count:
            raise SlimError(
                f"batch_size {self.size}, process {self.index} of {self.count}: need size >= 1, 0 <= index < count"
            )
        if self.size % self.count:
            raise SlimError(f"batch_size {self.size} does not divide by the {self.count} processes")

    @property
    def local(self) -> int:
        return self.size // self.count

    @property
    def rows(self) -> slice:
        return slice(self.index * self.local, (self.index + 1) * self.local)


@functools.lru_cache(maxsize=4)
def permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    """The order of `count` records in an epoch, (count,) int64; each epoch another one."""
    return np.random.default_rng((seed, 0, epoch)).permutation(count)


def order(positions: np.ndarray, count: int, seed: int, repeats: int = 1) -> np.ndarray:
    """Record numbers at global `positions` of the endless shuffled stream; each record comes `repeats` times in a row.

    Rows of one stream fill the batches one after the other, also across the end of an epoch: no record is left out.
    """
    epochs, places = np.divmod(positions // repeats, count)
    result = np.empty(len(positions), np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        result[here] = permutation(count, seed, int(epoch))[places[here]]
    return result


class Cache:
    """All records of a source decoded once: images (N, H, W, C) uint8 of the model's size, labels (N,)."""

    def __init__(self, source: Source, preprocess: Preprocess) -> None:
        count = len(source)
        self.images = np.empty((count, *preprocess.size, preprocess.in_chans), np.uint8)
        self.labels = np.empty(count, np.int32)
        for index in range(count):
            record = source[index]
            self.images[index] = preprocess.pixels(record["image"], record["name"])
            self.labels[index] = record["label"]

    def __getitem__(self, index: Any) -> Any:
        return self.images[index], self.labels[index]


def fits_cache(source: Source, preprocess: Preprocess, augment: Augment) -> bool:
    """Whether to decode everything once: a small set, not cropped at random, of images that share one small shape."""
    size = len(source) * preprocess.size[0] * preprocess.size[1] * preprocess.in_chans
    return augment.kind != "crop" and source.native_shape is not None and size <= CACHE_BYTES


class TrainBatches:
    """Training batches in two steps: batches[s] decodes and augments, in a worker if there are any; finish normalises.

    batches[s] is {"image" (B, H, W, C) uint8 (a quarter of what floats would cost on the way to the main process),
    "label" (B,) int32, "erase" (B, 4) boxes, "skipped" (K,) int64}. A record that cannot be read is replaced by the one
    after it in the epoch's order and listed in "skipped".
    """

    def __init__(
        self,
        source: Source,
        preprocess: Preprocess,
        augment: Augment,
        shard: Shard,
        seed: int,
        repeats: int = 1,
        cache: Cache | None = None,
    ) -> None:
        self._source, self._preprocess, self._augment, self._shard = source, preprocess, augment, shard
        self._seed, self._repeats, self._cache = seed, repeats, cache
        self._crop = CropAugment(augment, preprocess) if augment.kind == "crop" else None

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, step: int) -> Batch:
        positions = np.arange(self._shard.rows.start, self._shard.rows.stop) + int(step) * self._shard.size
        skipped: list[int] = []
        boxes = np.zeros((len(positions), 4), np.int32)
        if self._cache is not None:
            images, labels = self._cache[order(positions, len(self._source), self._seed, self._repeats)]
        else:
            shape = (len(positions), *self._preprocess.size, self._preprocess.in_chans)
            images, labels = np.empty(shape, np.uint8), np.empty(len(positions), np.int32)
            for row, position in enumerate(positions.tolist()):
                images[row], labels[row], boxes[row] = self._read(position, skipped)
        if self._crop is None:
            # Drawn for the global batch, so that a row's choices do not depend on how it is shared out.
            choices = np.random.default_rng((self._seed, 1, int(step))).random((self._shard.size, 5))[self._shard.rows]
            images = shift_batch(images, self._augment, choices)
        return {"image": images, "label": labels, "erase": boxes, "skipped": np.array(skipped, np.int64)}

    def finish(self, batch: Batch, step: int) -> Batch:
        """{"image" (B, H, W, C) float32, "label", "mask" (B,) float32}: normalised and with the boxes erased."""
        images = self._preprocess.normalise(batch["image"])
        first = step * self._shard.size + self._shard.rows.start
        for row in np.flatnonzero(batch["erase"][:, 2]).tolist():
            random = np.random.default_rng((self._seed, 2, first + row))
            erase(images[row], tuple(batch["erase"][row].tolist()), self._augment.erase_mode, random)
        # A copy: what workers send lies in shared memory, which whoever keeps the batch would hold past the end.
        return {"image": images, "label": np.array(batch["label"]), "mask": np.ones(len(images), np.float32)}

    def _read(self, position: int, skipped: list[int]) -> tuple[np.ndarray, int, Box]:
        """The (H, W, C) uint8 image for a position, its label and the box to erase."""
        count = len(self._source)
        places = permutation(count, self._seed, position // self._repeats // count)
        first = position // self._repeats % count
        for further in range(min(count, 100)):
            record = int(places[(first + further) % count])
            try:
                item = self._source[record]
                if self._crop is None:
                    return self._preprocess.pixels(item["image"], item["name"]), item["label"], (0, 0, 0, 0)
                picture = decode(item["image"], self._preprocess.in_chans, item["name"], self._crop.at_least)
                pixels, box = self._crop(picture, np.random.default_rng((self._seed, 1, position)))
                return pixels, item["label"], box
            except (BadImage, OSError):
                skipped.append(record)
        raise SlimError(
            f"{len(skipped)} images in a row of {self._source.name}/{self._source.split} cannot be read, "
            f"the last one {self._source.record_name(skipped[-1])}"
        )


class EvalBatches:
    """Evaluation batches, every record once in order; the tail is padded: image 0, label -1, mask 0, index -1.

    As with TrainBatches, batches[s] has uint8 images and finish makes them floats.
    """

    def __init__(self, source: Source, preprocess: Preprocess, shard: Shard, cache: Cache | None = None) -> None:
        self._source, self._preprocess, self._shard, self._cache = source, preprocess, shard, cache

    def __len__(self) -> int:
        return -(-len(self._source) // self._shard.size)

    def __getitem__(self, step: int) -> Batch:
        index = np.arange(self._shard.rows.start, self._shard.rows.stop) + int(step) * self._shard.size
        real = index < len(self._source)
        pixels = np.zeros((len(index), *self._preprocess.size, self._preprocess.in_chans), np.uint8)
        labels = np.full(len(index), -1, np.int32)
        if self._cache is not None:
            pixels[real], labels[real] = self._cache[index[real]]
        else:
            for row in np.flatnonzero(real):
                item = self._open(int(index[row]))
                pixels[row], labels[row] = self._preprocess.pixels(item["image"], item["name"]), item["label"]
        return {"image": pixels, "label": labels, "index": np.where(real, index, -1).astype(np.int32)}

    def finish(self, batch: Batch, step: int) -> Batch:
        """Adds "mask" and normalises."""
        images, real = self._preprocess.normalise(batch["image"]), batch["index"] >= 0
        images[~real] = 0
        kept = {key: np.array(batch[key]) for key in ("label", "index")}  # a copy, as in training
        return {**kept, "image": images, "mask": real.astype(np.float32)}

    def _open(self, index: int) -> Any:
        try:
            return self._source[index]
        except OSError as error:
            raise SlimError(f"cannot read {self._source.record_name(index)}: {error}") from error
