"""The two iterators of a run: endless training batches and one pass of evaluation batches, built on grain.

    it = train_iterator(source, preprocess=Preprocess(...), augment=Augment(...), seed=0, batch_size=64,
                        process_index=0, process_count=1, num_workers=0, repeats=1, max_bad=None)
    it.steps_per_epoch, it.step, it.get_state(), it.set_state(state), it.bad_records, it.close()
    ev = eval_batches(source, preprocess=..., batch_size=64, process_index=0, process_count=1, num_workers=0,
                      multiple_of=1)                                               # re-iterable, len(ev)

Both yield {"image": (B, H, W, C) float32 normalised, "label": (B,) int32, "mask": (B,) float32}, evaluation also
"index"; B is this process's share of `batch_size`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import grain
from absl import flags

from slimvit_jax.data.augment import Augment
from slimvit_jax.data.batches import Batch, Cache, EvalBatches, Shard, TrainBatches, fits_cache
from slimvit_jax.data.source import Source
from slimvit_jax.data.workers import close_at_exit, free_batches, start_worker
from slimvit_jax.errors import SlimError
from slimvit_jax.images.preprocess import Preprocess

logger = logging.getLogger(__name__)


def _schedule(batches: Any, start: int, num_workers: int) -> grain.DatasetIterator:
    """The grain iterator over batches[start:]: in this thread, or by worker processes that each make every k-th
    batch.
    """
    dataset = grain.MapDataset.source(batches)
    if start:
        dataset = dataset[start:]
    # Threads and a buffer of hundreds of *batches*, grain's defaults, are for single records.
    stream = dataset.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    if num_workers:
        if not flags.FLAGS.is_parsed():  # grain reads its own absl flags; not every caller is an absl program
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=2)
        stream = stream.mp_prefetch(options, worker_init_fn=start_worker)
    return iter(stream)


class TrainIterator(grain.DatasetIterator):
    """Endless training batches; see train_iterator. Its state is the number of batches handed out, and what they came
    from.

    As a grain iterator it goes into an Orbax composite by grain.checkpoint.CheckpointSave / CheckpointRestore. The
    state is the same on every process and does not depend on the number of workers.
    """

    def __init__(
        self,
        batches: TrainBatches,
        identity: dict[str, Any],
        source: Source,
        shard: Shard,
        num_workers: int,
        max_bad: int,
    ) -> None:
        super().__init__()
        self._batches, self._identity, self._source, self._shard = batches, identity, source, shard
        self._num_workers, self._max_bad = num_workers, max_bad
        self._step = 0
        self._stream: grain.DatasetIterator | None = None
        self._bad: dict[int, str] = {}
        if num_workers:
            close_at_exit(self)

    @property
    def step(self) -> int:
        """How many batches have been handed out."""
        return self._step

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in as many images as the source has, at least 1."""
        return max(1, len(self._source) // self._shard.size)

    @property
    def bad_records(self) -> tuple[str, ...]:
        """The names of the records skipped so far in this process, each once."""
        return tuple(self._bad.values())

    def __next__(self) -> Batch:
        if self._stream is None:
            self._stream = _schedule(self._batches, self._step, self._num_workers)
        batch = next(self._stream)
        for index in batch["skipped"].tolist():
            self._note_bad(index)
        self._step += 1
        return self._batches.finish(batch, self._step - 1)

    def _note_bad(self, index: int) -> None:
        if index in self._bad:
            return
        self._bad[index] = self._source.record_name(index)
        logger.warning(
            "skipped unreadable image %s (%d so far, limit %d)", self._bad[index], len(self._bad), self._max_bad
        )
        if len(self._bad) > self._max_bad:
            raise SlimError(
                f"{len(self._bad)} images of {self._source.name}/{self._source.split} cannot be read, more than "
                f"max_bad={self._max_bad}; the first: {', '.join(self.bad_records[:3])}"
            )

    def get_state(self) -> dict[str, Any]:
        """JSON-able: {"step": batches handed out, and the settings that define the stream}."""
        return {"step": self._step, **self._identity}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes to where `state` was taken. A state of another stream (seed, batch size, source) is a SlimError naming
        it.
        """
        for key, value in self._identity.items():
            if state.get(key) != value:
                raise SlimError(f"saved data state has {key} {state.get(key)!r}, this run has {value!r}")
        self._close_stream()
        self._step = int(state["step"])

    def start_prefetch(self) -> None:
        """Starts the worker processes, if there are any, before the first batch is asked for."""
        if self._stream is None and self._num_workers:
            self._stream = _schedule(self._batches, self._step, self._num_workers)
            self._stream.start_prefetch()

    def _close_stream(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()
            del stream
            free_batches(self._num_workers)

    def close(self) -> None:
        """Ends the worker processes."""
        self._close_stream()


def train_iterator(
    source: Source,
    *,
    preprocess: Preprocess,
    augment: Augment = Augment(),  # noqa: B008 (frozen)
    seed: int = 0,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    num_workers: int = 0,
    repeats: int = 1,
    max_bad: int | None = None,
) -> TrainIterator:
    """Endless shuffled, augmented training batches.

    Args:
        source: from open_source.
        preprocess: size, channels and normalisation; its resize and crop too, unless augment.kind is "crop".
        augment: of the images; the default does nothing.
        seed: with the number of a batch it determines the batch.
        batch_size: images per step over all processes; must divide by process_count.
        num_workers: processes that decode and augment; 0 does it in the caller. A source that is decoded once into
            memory (`fits_cache`) needs none and uses none.
        repeats: repeated augmentation: every drawn image comes so many times in a row, differently augmented. An epoch
            keeps its number of steps and sees 1 / repeats of the images.
        max_bad: how many unreadable images to skip before giving up; None: 1 % of the set, at least 10.
    Raises:
        SlimError: settings that do not fit; while iterating, too many unreadable images.
    """
    shard = Shard(batch_size, process_index, process_count)
    for name, value, least in (("num_workers", num_workers, 0), ("repeats", repeats, 1), ("seed", seed, 0)):
        if value < least:
            raise SlimError(f"{name} must be at least {least}, not {value}")
    held = Cache(source, preprocess) if fits_cache(source, preprocess, augment) else None
    batches = TrainBatches(source, preprocess, augment, shard, seed, repeats, held)
    identity = {
        "source": f"{source.name}/{source.split}",
        "records": len(source),
        "seed": seed,
        "batch_size": batch_size,
        "repeats": repeats,
    }
    limit = max(10, len(source) // 100) if max_bad is None else max_bad
    return TrainIterator(batches, identity, source, shard, 0 if held is not None else num_workers, limit)


class EvalPass:
    """One pass over a split, as often as wanted; see eval_batches."""

    def __init__(self, batches: EvalBatches, num_workers: int) -> None:
        self._batches, self._num_workers = batches, num_workers

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        stream = _schedule(self._batches, 0, self._num_workers)
        try:
            for step, batch in enumerate(stream):
                yield self._batches.finish(batch, step)
        finally:
            stream.close()
            del stream
            free_batches(self._num_workers)


def eval_batches(
    source: Source,
    *,
    preprocess: Preprocess,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    num_workers: int = 0,
    multiple_of: int = 1,
) -> EvalPass:
    """Every image exactly once, in the order of the source, in batches of one shape; all processes get as many batches.

    Args:
        batch_size: images per step over all processes, rounded up to a multiple of process_count * multiple_of; no more
            than there are.
        multiple_of: what the local batch must divide by (the number of local devices).
    Padding rows have mask 0, label -1, index -1 and image 0. An unreadable image is a SlimError naming its file.
    """
    if batch_size < 1 or multiple_of < 1:
        raise SlimError(f"batch_size {batch_size} and multiple_of {multiple_of} must be at least 1")
    unit = process_count * multiple_of
    batch_size = min(batch_size, len(source))
    shard = Shard(-(-batch_size // unit) * unit, process_index, process_count)
    held = Cache(source, preprocess) if fits_cache(source, preprocess, Augment()) else None
    return EvalPass(EvalBatches(source, preprocess, shard, held), 0 if held is not None else num_workers)
