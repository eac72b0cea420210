"""Fair timing: what is compared takes turns, so that a machine that slows down slows everything down."""

from __future__ import annotations

import dataclasses
import datetime
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

# A sampler runs its work `repeats` times and returns (wall seconds, CPU seconds of its process) for one run of it.
Sampler = Callable[[int], tuple[float, float]]


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds per run over the rounds.

    Attributes:
      wall: elapsed time.
      cpu: CPU time over all threads of the process that did the work. On a machine shared with other work it drifts far
        less than `wall`; with an accelerator it says nothing.
    """

    wall: tuple[float, ...]
    cpu: tuple[float, ...]

    @property
    def median(self) -> float:
        """Of the elapsed times."""
        return statistics.median(self.wall)

    @property
    def median_cpu(self) -> float:
        """Of the CPU times."""
        return statistics.median(self.cpu)


def sampler(call: Callable[[], Any]) -> Sampler:
    """A sampler of `call`, a function that returns only when its work is done (`jax.block_until_ready`)."""

    def sample(repeats: int) -> tuple[float, float]:
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(repeats):
            call()
        return (time.perf_counter() - wall) / repeats, (time.process_time() - cpu) / repeats

    return sample


def interleave(
    samplers: Mapping[str, Sampler],
    rounds: int = 9,
    min_seconds: float = 0.1,
    pause: float = 0.0,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Timing]:
    """Times every sampler once per round, in an order that is reversed each time.

    Args:
      samplers: by name. Each is called once more beforehand, for its warm-up and to choose how often it repeats.
      rounds: samples of each.
      min_seconds: a sample repeats its work until about this long has passed.
      pause: seconds to wait before each sample, for what the one before leaves spinning.
      progress: called with a name after each sample.

    Returns:
      A `Timing` by name.
    """
    repeats: dict[str, int] = {}
    for name, sample in samplers.items():
        sample(1)
        repeats[name] = max(1, math.ceil(min_seconds / max(sample(1)[0], 1e-6)))
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in samplers}
    for turn in range(rounds):
        for name in list(samplers)[:: 1 if turn % 2 == 0 else -1]:
            if pause:
                time.sleep(pause)
            samples[name].append(samplers[name](repeats[name]))
            if progress is not None:
                progress(name)
    return {name: Timing(*(tuple(column) for column in zip(*rows, strict=True))) for name, rows in samples.items()}


def describe_machine() -> dict[str, Any]:
    """What a reader needs to judge a time: processor, cores, load, devices and versions."""
    import jax

    versions = {}
    for package in ("jax", "jaxlib", "flax", "numpy", "torch", "timm"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "malloc": os.environ.get("GLIBC_TUNABLES", ""),  # of huge_pages.py
        "devices": [f"{device.platform}: {device.device_kind}" for device in jax.devices()],
        "python": platform.python_version(),
        "versions": versions,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
