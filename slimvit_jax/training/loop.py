"""One stage, step by step: nothing here waits for the device but where a number or a checkpoint is due."""

from __future__ import annotations

import collections
import dataclasses
import math
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from slimvit_jax import data
from slimvit_jax.errors import SlimError
from slimvit_jax.inference.evaluate import Inference, evaluate
from slimvit_jax.training import build, step
from slimvit_jax.training.checkpoint import Checkpoints
from slimvit_jax.training.devices import batch_sharding, state_shardings, to_host
from slimvit_jax.training.logs import CacheHits, Logs, StageProgress, memory_use

#: Steps that may be under way on the device while the host prepares the next: enough to hide the host, few enough that
#: a loss that is not finite is noticed at once and that the queue holds no heap of batches.
AHEAD = 2


class Stopped(Exception):
    """The run was asked to stop (SIGTERM, Ctrl-C, preemption) and has saved where it stands.

    Attributes:
      signal: the one that asked, if one did.
    """

    def __init__(self, text: str, signal: int | None = None) -> None:
        super().__init__(text)
        self.signal = signal


class NotFinite(SlimError):
    """The loss or the gradient is NaN or infinite."""


class Interrupt:
    """Notes SIGTERM and SIGINT while it is entered; a second one acts at once.

    With several processes both are left alone: one that stopped by itself would leave the others waiting. JAX passes a
    SIGTERM that any of them gets on to all and names a step to stop at, see `Checkpoints.reached_preemption`.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        for number in (signal.SIGTERM, signal.SIGINT) if jax.process_count() == 1 else ():
            try:
                self._before[number] = signal.signal(number, self._note)
            except ValueError:  # not in the main thread, as in a notebook's worker
                pass
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: Any) -> None:
        self.signal = number
        signal.signal(number, self._before[number])


@dataclasses.dataclass
class Run:
    """What all stages of a run share."""

    config: Any
    path: Path
    mesh: jax.sharding.Mesh
    logs: Logs
    checkpoints: Checkpoints
    interrupt: Interrupt
    source: data.Source
    eval_source: data.Source
    claim: Callable[[], None] = lambda: None  # called before anything is saved


@dataclasses.dataclass
class StageResult:
    """`variables` as NumPy; `metrics` of the last evaluation; `seconds` over all runs that worked on it."""

    variables: Any
    metrics: dict[str, float]
    seconds: float
    steps: int


class StageRun:
    """Runs one stage from its start or its newest checkpoint to its end.

    Args:
      run: shared.
      stage: what to train.
      offset: global steps before this stage.
    """

    def __init__(self, run: Run, stage: build.Stage, offset: int) -> None:
        self.run, self.stage, self.offset = run, stage, offset
        self.names = step.metric_names(stage.options.loss_weights)
        self._inference: Inference | None = None
        self._began, self._seconds = time.perf_counter(), 0.0
        self._restart_clock(0)
        self._log_steps = min(run.config.log.every_steps, max(1, stage.steps // 4))  # a short stage shows progress too
        self._rows: list[np.ndarray] = []
        self._first, self._tracing = True, False

    def train(self, start: Any) -> StageResult:
        """`start()`, called only where no checkpoint is, gives the first variables of model, teacher and labeller.

        Raises:
          Stopped, NotFinite: see there.
        """
        stage, run = self.stage, self.run
        iterator = build.train_data(run.config, stage.config, stage.index, run.source)
        abstract = jax.eval_shape(lambda: stage.state(*stage.fresh()))
        shardings = state_shardings(run.mesh, abstract, run.config.mesh.smallest)
        fitted = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, shardings)
        found = run.checkpoints.restore(stage.name, fitted)
        if found is None:
            run.logs.rewind(self.offset)
            state, done = jax.device_put(stage.state(*start()), shardings), 0
        else:
            state, meta = found
            done, self._seconds = int(meta["stage_step"]), float(meta["seconds"])
            iterator.set_state(meta["data"])
            run.logs.rewind(self.offset + done)
            run.logs.event("resume", f"{stage.name}: going on after step {done}", self.offset + done, stage=stage.name)
        with data.prefetch_to_device(iterator, batch_sharding(run.mesh)) as batches:
            batches.start_prefetch()
            compiled = self.compile(abstract)
            state = self.steps(compiled, state, batches, done)
        metrics = self._evaluate(state, stage.steps)
        return StageResult(to_host(state.variables), metrics, self._elapsed(), stage.steps)

    def compile(self, abstract: Any) -> Any:
        """The stage's step, compiled for states of these shapes; logs how long that took."""
        began = time.perf_counter()
        self.run.logs.event("compiling", f"{self.stage.name}: compiling the step", self.offset, stage=self.stage.name)
        model, size = self.stage.model, self.run.config.data.batch_size
        place = batch_sharding(self.run.mesh)
        shape = lambda *axes, dtype: jax.ShapeDtypeStruct((size, *axes), dtype, sharding=place)
        batch = {
            "image": shape(*model.img_size, model.in_chans, dtype=np.float32),
            "label": shape(dtype=np.int32),
            "mask": shape(dtype=np.float32),
        }
        with CacheHits() as cache:
            compiled = self.stage.compiled_step(self.run.mesh, abstract, batch, self.run.config.mesh.smallest)
        facts = {"seconds": round(time.perf_counter() - began, 2), "from_cache": cache.hits > 0}
        self.run.logs.event("compiled", "", self.offset, stage=self.stage.name, **facts)
        return compiled

    def steps(self, compiled: Any, state: Any, batches: Any, done: int) -> Any:
        """The state after the stage's last step, from the one after step `done`; `state` is consumed.

        Args:
          compiled: of `compile`.
          batches: data.DeviceIterator, at batch number `done`.
        """
        with StageProgress(self.run.logs, self.stage.name, self.stage.steps, done) as self.progress:
            return self._steps(compiled, state, batches, done)

    def _steps(self, compiled: Any, state: Any, batches: Any, done: int) -> Any:
        stage, config = self.stage, self.run.config
        eval_steps = round(config.eval.every_epochs * stage.steps_per_epoch)
        pending: collections.deque[tuple[int, Any]] = collections.deque()
        self._restart_clock(done)
        batches.reset_wait()
        for number in range(done + 1, stage.steps + 1):
            self._trace(number - done, state)
            state, metrics = compiled(state, next(batches))
            metrics.copy_to_host_async()
            pending.append((number, metrics))
            self._drain(pending, AHEAD, batches)
            self.progress.update(number)
            stop = self.run.interrupt.signal is not None or self.run.checkpoints.reached_preemption(
                self.offset + number
            )
            if stop or (number % config.checkpoint.every_steps == 0 and number < stage.steps):
                self._drain(pending, 0, batches)  # a state that is not finite must not be saved
                self._save(state, batches, number, wait=stop)
            if stop:
                text = f"stopped at step {number} of stage {stage.name!r}; saved, the same command goes on"
                self.run.logs.write("event", self.offset + number, name="stopped", text=text, stage=stage.name)
                raise Stopped(text, self.run.interrupt.signal)
            if eval_steps and number % eval_steps == 0 and number < stage.steps:
                self._drain(pending, 0, batches)
                self._evaluate(state, number)
                self._restart_clock(number)
                batches.reset_wait()
        self._drain(pending, 0, batches)
        self._trace(None, state)
        return state

    def _drain(self, pending: Any, leave: int, batches: Any) -> None:
        """Reads the metrics of all steps but the last `leave`; logs where a line is due."""
        while len(pending) > leave:
            number, metrics = pending.popleft()
            row = np.asarray(metrics)
            if not (math.isfinite(row[0]) and math.isfinite(row[-2])):
                self._not_finite(number, row)
            if self._first:  # it has run: what it needs is known
                self.run.logs.event("memory", "", self.offset + number, stage=self.stage.name, **memory_use())
                self._first = False
            self._rows.append(row)
            if number % self._log_steps == 0 or number == self.stage.steps:
                self._log(number, batches)

    def _log(self, number: int, batches: Any) -> None:
        (before, since), now = self._marks[0], time.perf_counter()
        rows = np.stack(self._rows)
        values = dict(zip(self.names, rows.mean(0).tolist(), strict=True))
        values |= {"grad_norm": float(rows[-1, -2]), "lr": float(rows[-1, -1])}
        speed = (number - before) * self.run.config.data.batch_size / max(now - since, 1e-9)
        values |= {"images_per_second": round(speed, 2), "data_wait": round(batches.wait_fraction, 4)}
        facts = {"stage": self.stage.name, "stage_step": number, "epoch": number / self.stage.steps_per_epoch}
        self.run.logs.write("train", self.offset + number, **facts, **values)
        self.progress.update(number, values)
        self._rows.clear()
        self._marks.append((number, now))
        batches.reset_wait()

    def _restart_clock(self, number: int) -> None:
        """Measures the speed from step `number` on."""
        # since the line before the last: the lines at the end come in one burst, when the steps under way are awaited
        self._marks = collections.deque([(number, time.perf_counter())], maxlen=2)

    def _not_finite(self, number: int, row: np.ndarray) -> None:
        what = f"loss is {row[0]}" if not math.isfinite(row[0]) else f"gradient norm is {row[-2]}"
        text = (
            f"{what} at step {number} of stage {self.stage.name!r}, learning rate {row[-1]:.3g};"
            " stopped, the last good checkpoint is kept: lower the learning rate, or clip gradients"
        )
        self.run.logs.write("event", self.offset + number, name="not_finite", text=text, stage=self.stage.name)
        raise NotFinite(text)

    def _save(self, state: Any, batches: Any, number: int, wait: bool) -> None:
        meta = {
            "stage": self.stage.name,
            "stage_step": number,
            "step": self.offset + number,
            "seconds": self._elapsed(),
            "data": batches.get_state(),
        }
        self.run.claim()
        self.run.checkpoints.save(self.offset + number, state, meta, wait)

    def _evaluate(self, state: Any, number: int) -> dict[str, float]:
        """Top-1 and top-5 of the stage's model at inference, on the whole evaluation split."""
        variables = to_host(state.variables)
        if self._inference is None:
            self._inference = Inference(self.stage.model, variables)
        result = evaluate(
            self._inference.with_variables(variables), batches=build.eval_data(self.run.config, self.run.eval_source)
        )
        metrics = {"accuracy": result.top1, "top5": result.top5, "loss": result.loss, "examples": result.count}
        self.run.logs.write("eval", self.offset + number, stage=self.stage.name, **metrics)
        return metrics

    def _trace(self, number: int | None, state: Any) -> None:
        """Starts and ends the profile around the steps that config.profile asks for; `number` counts from 1."""
        profile = self.run.config.profile
        if not self._tracing and profile.steps and number == profile.start + 1:
            jax.profiler.start_trace(str(self.run.path / "profile" / self.stage.name))
            self._tracing = True
        elif self._tracing and (number is None or number == profile.start + profile.steps + 1):
            jax.block_until_ready(state)
            jax.profiler.stop_trace()
            self._tracing = False

    def _elapsed(self) -> float:
        return round(self._seconds + time.perf_counter() - self._began, 2)
