"""Dynamic batches: images that arrive within a few milliseconds of one another run together."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor

import numpy as np

from slimvit_jax.serve.engine import Answer, Engine


class Full(Exception):
    """Every place is taken."""


@dataclasses.dataclass(eq=False)
class _Item:
    budget: str
    image: np.ndarray
    answer: asyncio.Future[Answer]
    since: float


class Batcher:
    """Collects images for `engine.run`, which it calls in `thread`, one batch at a time, the oldest image first.

    A batch waits until it is full or its oldest image has waited `wait` seconds, but only where company can be
    expected: others are uploading or decoding, or the batch before had several. So a single client never waits, and
    under load, where images gather while the device is busy, nobody does.

    Args:
      engine: prepared.
      thread: an executor of one thread.
      wait: seconds.
      places: for images at most, from the moment their upload begins to their answer.
      ran: called after each batch with its budget's name, its images and the seconds it took.
    """

    def __init__(
        self, engine: Engine, thread: Executor, wait: float, places: int, ran: Callable[[str, int, float], None]
    ) -> None:
        self.engine, self.wait, self.most, self.taken = engine, wait, places, 0
        self._last = 0  # images of the batch before
        self._thread, self._ran = thread, ran
        self._waiting: list[_Item] = []
        self._arrived = asyncio.Event()

    @contextlib.contextmanager
    def places(self, count: int) -> Iterator[None]:
        """Takes so many places while entered.

        Raises:
          Full: there are fewer left.
        """
        if self.taken + count > self.most:
            raise Full
        self.taken += count
        try:
            yield
        finally:
            self.taken -= count

    async def ask(self, budget: str, image: np.ndarray) -> Answer:
        """The answer for an image (H, W, C) float32 at the budget of that name."""
        item = _Item(budget, image, asyncio.get_running_loop().create_future(), time.monotonic())
        self._waiting.append(item)
        self._arrived.set()
        return await item.answer

    async def work(self) -> None:
        """Runs batches until it is cancelled."""
        while True:
            batch = await self._next()
            try:
                images = [item.image for item in batch]
                loop = asyncio.get_running_loop()
                answers = await loop.run_in_executor(self._thread, self.engine.run, batch[0].budget, images)
            except Exception as error:  # of the device; each asker is told
                for item in batch:
                    if not item.answer.done():
                        item.answer.set_exception(error)
                continue
            self._ran(batch[0].budget, len(batch), answers[0].seconds)
            for item, answer in zip(batch, answers, strict=True):
                if not item.answer.done():  # its asker may have been cancelled
                    item.answer.set_result(answer)

    async def _next(self) -> list[_Item]:
        while not self._waiting:
            await self._arrival(None)
        budget, until = self._waiting[0].budget, self._waiting[0].since + self.wait
        while True:
            same = [item for item in self._waiting if item.budget == budget][: self.engine.batch_sizes[-1]]
            expected = self.taken > len(self._waiting) or self._last > 1
            left = until - time.monotonic() if expected else 0
            if left <= 0 or len(same) == self.engine.batch_sizes[-1]:
                break
            await self._arrival(left)
        batch = same[: self.engine.best(budget, len(same))]
        self._waiting = [item for item in self._waiting if item not in batch]
        self._last = len(batch)
        return batch

    async def _arrival(self, seconds: float | None) -> None:
        self._arrived.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._arrived.wait(), seconds)
