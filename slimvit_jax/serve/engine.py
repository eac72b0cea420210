"""The compiled side of the server: every keep rate at a few batch sizes, from one set of weights.

Programs are compiled ahead of time and called as they are, so that nothing can compile once the server is ready: a
compiled program refuses other shapes where `jax.jit` would trace anew.
"""

from __future__ import annotations

import dataclasses
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from slimvit_jax import fresh
from slimvit_jax.inference.flops import flops

#: Taps that `reports.pictures.groups_of` reads, of every merge.
_GROUPS = ("owners", "clusters", "assignment", "assignments")
_TIMED = 5  # runs of every program before the server is ready: their median says which batch size pays


@dataclasses.dataclass(frozen=True)
class Budget:
    """One stop of the slider.

    Attributes:
      name: "0.7", or "own" where no single keep rate says what the model keeps.
      keep_rate: the number; None where there is none.
      model: from `create_model`; the models of an engine differ in their budgets only.
    """

    name: str
    keep_rate: float | None
    model: Any

    def facts(self) -> dict[str, Any]:
        """What JSON says of it."""
        counts, cost = self.model.slim.plan.token_counts, flops(self.model).total
        return {"name": self.name, "keep_rate": self.keep_rate, "token_counts": counts, "multiply_adds": cost}


class Answer(NamedTuple):
    """What the model says of one image.

    Attributes:
      logits: (classes,) float32.
      scores: (N,) float32 in raster order; None where the method has none.
      kept: raster indices in the order held, one array per reduction; None where the method merges.
      groups: (N,) per merge, the number of the token that each patch is part of, -1 for none; () where nothing merges.
      seconds: that its batch took on the device.
      batch: images in that batch.
    """

    logits: np.ndarray
    scores: np.ndarray | None
    kept: tuple[np.ndarray, ...] | None
    groups: tuple[np.ndarray, ...]
    seconds: float
    batch: int


class Engine:
    """All programs of a server. `run` is for one thread at a time.

    Args:
      budgets: at least one, of distinct names.
      variables: the weights that serve them all.
      batch_sizes: how many images a program takes; fewer are padded.
    """

    def __init__(self, budgets: Sequence[Budget], variables: Any, batch_sizes: Sequence[int] = (1, 4, 16)) -> None:
        self.budgets = {budget.name: budget for budget in budgets}
        self.batch_sizes = tuple(sorted(set(batch_sizes)))
        self.variables = jax.device_put(variables)
        #: Median seconds of every program, by budget and batch size; complete when `prepare` is done.
        self.seconds: dict[tuple[str, int], float] = {}
        self._programs: dict[tuple[str, int], Any] = {}
        model = next(iter(self.budgets.values())).model
        found = fresh.untrained(variables["params"].get("slim", {}), model.training_only)
        fresh.say(model.slim.method, found)

    @property
    def total(self) -> int:
        """How many programs there will be."""
        return len(self.budgets) * len(self.batch_sizes)

    def prepare(self, progress: Callable[[int], None], stop: threading.Event) -> None:
        """Compiles and times everything; `progress` hears how many programs are done, `stop` ends it between two."""
        for name, budget in self.budgets.items():
            for size in self.batch_sizes:
                if stop.is_set():
                    return
                if (name, size) in self.seconds:  # by another app
                    continue
                shape = (size, *budget.model.img_size, budget.model.in_chans)
                images = jax.ShapeDtypeStruct(shape, jnp.float32)
                self._programs[name, size] = jax.jit(_forward(budget.model)).lower(self.variables, images).compile()
                noise = np.random.default_rng(0).standard_normal(shape, np.float32)
                timed = [self.run(name, list(noise))[0].seconds for _ in range(1 + _TIMED)][1:]
                self.seconds[name, size] = statistics.median(timed)
                progress(len(self.seconds))

    def best(self, name: str, waiting: int) -> int:
        """How many of so many waiting images to run as the next batch: the size that does the most per second."""
        size = max(self.batch_sizes, key=lambda size: min(size, waiting) / self.seconds[name, size])
        return min(size, waiting)

    def run(self, name: str, images: Sequence[np.ndarray]) -> list[Answer]:
        """The answers for at most as many images (H, W, C) float32 as the largest batch size."""
        count = len(images)
        size = next(size for size in self.batch_sizes if size >= count)
        batch = np.zeros((size, *images[0].shape), np.float32)
        for row, image in enumerate(images):
            batch[row] = image
        started = time.perf_counter()
        logits, scores, kept, taps = jax.device_get(self._programs[name, size](self.variables, batch))
        seconds = time.perf_counter() - started
        groups = self._groups(name, taps)
        return [
            Answer(
                logits[row],
                None if scores is None else scores[row],
                None if kept is None else tuple(index[row] for index in kept),
                tuple(owner[row] for owner in groups),
                seconds,
                count,
            )
            for row in range(count)
        ]

    def _groups(self, name: str, taps: dict[str, Any]) -> list[np.ndarray]:
        """Of the whole batch, padding too: what it computes has the shapes that `prepare` ran."""
        if not taps:
            return []
        from slimvit_jax.reports.pictures import groups_of

        return groups_of(taps, self.budgets[name].model.geometry.prefix_tokens)


def _forward(model: Any) -> Callable[..., Any]:
    def forward(variables: Any, images: jax.Array) -> Any:
        logits, aux = model.apply(variables, images, return_aux=True)
        taps = {key: aux.taps[key] for key in _GROUPS if model.slim.merges and key in aux.taps}
        return logits.astype(jnp.float32), aux.scores, aux.kept, taps

    return forward
