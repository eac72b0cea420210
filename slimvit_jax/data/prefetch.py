"""From the host to the devices, one step ahead: a background thread makes the next batches while the current one
computes.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import grain
import jax

from slimvit_jax.data.workers import close_at_exit
from slimvit_jax.errors import SlimError


class DeviceIterator(grain.DatasetIterator):
    """Batches as jax arrays; see prefetch_to_device.

    Its state is that of the batches handed out, not of those already waiting in the queue, so that a checkpoint taken
    between two steps resumes exactly. Used by one thread.
    """

    def __init__(self, batches: Iterable[dict[str, Any]], sharding: jax.sharding.Sharding | None, depth: int) -> None:
        super().__init__()
        if depth < 1:
            raise SlimError(f"prefetch depth must be at least 1, not {depth}")
        self._batches, self._sharding, self._depth = batches, sharding, depth
        self._thread: threading.Thread | None = None
        self._queue: queue.Queue[tuple[str, Any, Any]] = queue.Queue(depth)
        self._stop = threading.Event()
        self._ended = False
        self._state = batches.get_state() if hasattr(batches, "get_state") else None
        self.reset_wait()
        close_at_exit(self)

    @property
    def wait_fraction(self) -> float:
        """Share of the wall time since the last reset_wait that the caller spent waiting for a batch."""
        elapsed = time.perf_counter() - self._since
        return min(1.0, self._waited / elapsed) if elapsed > 0 else 0.0

    def reset_wait(self) -> None:
        """Starts a new measurement of wait_fraction."""
        self._since, self._waited = time.perf_counter(), 0.0

    def _place(self, batch: dict[str, Any]) -> dict[str, jax.Array]:
        if self._sharding is None:
            return jax.device_put(batch)
        return {k: jax.make_array_from_process_local_data(self._sharding, v) for k, v in batch.items()}

    def _put(self, item: tuple[str, Any, Any], stop: threading.Event, out: queue.Queue[Any]) -> None:
        while not stop.is_set():
            try:
                return out.put(item, timeout=0.1)
            except queue.Full:
                continue

    def _fill(self, source: Iterator[dict[str, Any]], stop: threading.Event, out: queue.Queue[Any]) -> None:
        try:
            while not stop.is_set():
                try:
                    batch = next(source)
                except StopIteration:
                    return self._put(("end", None, None), stop, out)
                state = self._batches.get_state() if self._state is not None else None  # type: ignore[attr-defined]
                self._put(("batch", self._place(batch), state), stop, out)
        except BaseException as error:  # whatever it is belongs to the thread that asks for the batch
            self._put(("error", error, None), stop, out)

    def start_prefetch(self) -> None:
        """Starts the background thread, if it does not run yet."""
        if self._thread is None:
            self._stop = threading.Event()
            arguments = (iter(self._batches), self._stop, self._queue)
            self._thread = threading.Thread(target=self._fill, args=arguments, name="prefetch_to_device", daemon=True)
            self._thread.start()

    def __next__(self) -> dict[str, jax.Array]:
        if self._ended:
            raise StopIteration
        began = time.perf_counter()
        self.start_prefetch()
        kind, value, state = self._queue.get()
        self._waited += time.perf_counter() - began
        if kind == "batch":
            self._state = state
            return value
        self._ended = True
        self._halt()
        if kind == "error":
            raise value
        raise StopIteration

    def get_state(self) -> dict[str, Any]:
        """The state as of the batches handed out."""
        if self._state is None:
            raise SlimError("an evaluation pass has no state to save")
        return self._state

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes to where `state` was taken; batches in the queue are thrown away."""
        self._halt()
        self._batches.set_state(state)  # type: ignore[attr-defined]
        self._state, self._ended = self._batches.get_state(), False  # type: ignore[attr-defined]

    def _halt(self) -> None:
        """Ends the thread and waits for it."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._stop.set()
            while thread.is_alive():
                try:
                    self._queue.get_nowait()
                except queue.Empty:
                    thread.join(0.05)
            self._queue = queue.Queue(self._depth)  # the thread may have put a last batch

    def close(self) -> None:
        """Ends the thread, and the worker processes of the iterator below."""
        self._halt()
        if hasattr(self._batches, "close"):
            self._batches.close()

    def __enter__(self) -> DeviceIterator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def prefetch_to_device(
    batches: Iterable[dict[str, Any]], sharding: jax.sharding.Sharding | None = None, depth: int = 2
) -> DeviceIterator:
    """Moves batches to the devices in a background thread, `depth` of them ahead.

    Args:
        batches: a TrainIterator, an EvalPass or any iterable of dicts of arrays with a leading batch axis.
        sharding: of the global arrays, each process giving its local rows; None: this process's default device.
        depth: batches kept ready.
    """
    return DeviceIterator(batches, sharding, depth)
