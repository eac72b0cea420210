"""What a run tells: a progress bar for people, JSON lines and TensorBoard for machines.

metrics.jsonl has one JSON object per line; every line has "kind", "time" (seconds since 1970) and "step" (global step):

    {"kind": "train", "stage", "stage_step", "epoch", "loss", "loss_NAME"..., "accuracy", "grad_norm", "lr",
     "images_per_second", "data_wait"}
        means over the steps since the line before; lr and grad_norm of the last of them; images_per_second since the
        line before that one; data_wait is the share of the time spent waiting for data
    {"kind": "eval", "stage", "accuracy", "top5", "loss", "examples"}
        of the stage's model at inference; shares in 0..1
    {"kind": "event", "name", "text", ...}
        name: start, resume, stage_start, compiled, memory, stage_done, checkpoint_failed, checkpoint_corrupt,
        weights_corrupt, stopped, not_finite. Once per stage and start: compiled has "seconds" and "from_cache", memory
        has "process_peak_mib" and, where the device tells, "device_peak_mib"
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from slimvit_jax.files import write_text
from slimvit_jax.text import printable


class Logs:
    """Writes the metrics of a run; does nothing but keep quiet on every process but the first."""

    def __init__(self, workdir: Path, tensorboard: bool) -> None:
        self._active = jax.process_index() == 0
        self._path = workdir / "metrics.jsonl"
        self._tensorboard_dir = workdir / "tb" if tensorboard and self._active else None
        self._writer: Any = None
        self._file: Any = None
        self._complained = False
        self.console = Console(stderr=False, quiet=not self._active, highlight=False, soft_wrap=True)

    def rewind(self, step: int) -> None:
        """Forgets what a run that died had logged after global step `step`, and half a line at the end."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if not self._active or not self._path.exists():
            return
        kept = []
        for line in self._path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if entry.get("kind") == "event" or entry.get("step", 0) <= step:
                kept.append(json.dumps(entry) + "\n")
        write_text(self._path, "".join(kept))

    def write(self, kind: str, step: int, **values: Any) -> None:
        """One line, and one TensorBoard point per number."""
        if not self._active:
            return
        entry = {"kind": kind, "step": step, "time": round(time.time(), 3), **values}
        try:
            if self._file is None:
                self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115 (kept open)
            self._file.write(json.dumps(_finite(entry)) + "\n")
            self._file.flush()
            if self._tensorboard_dir is not None and kind in ("train", "eval"):
                self._draw(kind, values, step)
        except OSError as error:  # a full disk must not end the training
            self._file = None
            if not self._complained:
                self.console.print(Text(printable(f"metrics cannot be written to {self._path}: {error.strerror}")))
            self._complained = True

    def event(self, name: str, text: str, step: int = 0, **facts: Any) -> None:
        """An event, also said on the console."""
        self.write("event", step, name=name, text=text, **facts)
        if text:
            self.console.print(Text(printable(text)))

    def _draw(self, kind: str, values: Mapping[str, Any], step: int) -> None:
        """TensorBoard's points; those that a dead run wrote after the first `step` are hidden."""
        if self._writer is None:
            from tensorboardX import SummaryWriter

            self._writer = SummaryWriter(str(self._tensorboard_dir), purge_step=step, flush_secs=30)
        for name, value in values.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                self._writer.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _finite(entry: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no NaN: such values become their names."""
    fix = lambda v: str(v) if isinstance(v, float) and (v != v or abs(v) == float("inf")) else v
    return {key: fix(value) for key, value in entry.items()}


class StageProgress:
    """A bar with loss, images/s, share of time spent waiting for data, and time left; plain lines where there is no
    terminal (one every `seconds`).
    """

    def __init__(self, logs: Logs, stage: str, steps: int, done: int, seconds: float = 10.0) -> None:
        self._console, self._stage, self._steps, self._every = logs.console, stage, steps, seconds
        self._live = self._console.is_terminal and not self._console.quiet
        self._text = ""  # the numbers of the last log line
        self._began, self._first, self._said = time.perf_counter(), done, time.perf_counter()
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=None), MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}  left"), TimeRemainingColumn(),
            console=self._console, disable=not self._live,
        )  # fmt: skip
        self._task = self._bar.add_task(stage, total=steps, completed=done, numbers="")

    def __enter__(self) -> StageProgress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def update(self, done: int, numbers: Mapping[str, float] | None = None) -> None:
        """`done` steps are through; `numbers` are those of the last log line."""
        text = "" if numbers is None else (
            f"loss {numbers['loss']:.4f}  acc {numbers['accuracy']:.3f}  {numbers['images_per_second']:.0f} images/s"
            f"  data wait {numbers['data_wait']:.0%}"
        )  # fmt: skip
        if self._live:
            fields: dict[str, Any] = {"numbers": text} if text else {}
            self._bar.update(self._task, completed=done, **fields)
            return
        now = time.perf_counter()
        self._text = text or self._text
        if now - self._said > self._every or (text and done == self._steps):
            rate = (done - self._first) / max(now - self._began, 1e-9)
            left = (self._steps - done) / max(rate, 1e-9)
            self._console.print(Text(f"{self._stage}: {done}/{self._steps}  {self._text}  {left:.0f} s left"))
            self._said = now


class CacheHits:
    """Counts in `hits` the programs that were read from the cache of compiled ones while it is entered."""

    hits = 0

    def __enter__(self) -> CacheHits:
        jax.monitoring.register_event_listener(self._listen)
        return self

    def __exit__(self, *_: object) -> None:
        jax.monitoring.unregister_event_listener(self._listen)

    def _listen(self, event: str, **_: Any) -> None:
        self.hits += event == "/jax/compilation_cache/cache_hits"


def memory_use() -> dict[str, float]:
    """MiB in use: of this process (peak) and of its first device, where the device tells."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2)
    facts = {"process_peak_mib": round(peak, 1), "pid": os.getpid()}
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        facts["device_peak_mib"] = round(stats["peak_bytes_in_use"] / 2**20, 1)
    return facts
