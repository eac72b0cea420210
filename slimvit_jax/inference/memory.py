"""Whether a batch fits into memory: asked of the compiler beforehand, as Linux kills a process that takes too much."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from slimvit_jax.errors import SlimError

_COPIES = 3  # of the images: as they are decoded, as the next batch waits, and on the device
_CERTAIN = 64  # a pass takes tens of times the memory of its images; below 1/64 of what is free nobody asks


def available() -> float:
    """Bytes that this process can still get: of the machine, or of its container; inf where neither says."""
    return min(1024 * _entry(Path("/proc/meminfo"), "MemAvailable:"), _container())


def _container(folder: Path = Path("/sys/fs/cgroup")) -> float:
    """The limit of the control group (version 2) without what it uses; files that are kept in memory can go."""
    try:
        left = int((folder / "memory.max").read_text()) - int((folder / "memory.current").read_text())
    except (OSError, ValueError):  # no control group; "max"
        return math.inf
    kept = _entry(folder / "memory.stat", "inactive_file")
    return left + (kept if math.isfinite(kept) else 0)


def _entry(path: Path, name: str) -> float:
    try:
        return next(int(line.split()[1]) for line in path.read_text().splitlines() if line.split()[:1] == [name])
    except (OSError, StopIteration, ValueError, IndexError):
        return math.inf


def check_batch(model: Any, size: int) -> None:
    """Refuses a batch that a forward pass on the CPU has no memory for; an accelerator says so itself.

    Args:
      model: from create_model.
      size: images in the batch.

    Raises:
      SlimError: with what is needed and what is free.
    """
    shape = (size, *model.img_size, model.in_chans)
    images = 4 * math.prod(shape)
    if jax.default_backend() != "cpu" or images * _CERTAIN < available():
        return
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *shape[1:])))
    program = jax.jit(model.apply).lower(variables, jax.ShapeDtypeStruct(shape, jnp.float32)).compile()
    check_program(program, size, _COPIES * images)


def check_program(program: Any, size: int, more: float = 0) -> None:
    """Refuses a compiled program whose intermediate results do not fit, with `more` bytes beside them, on the CPU.

    Raises:
      SlimError: with what is needed and what is free.
    """
    sizes = program.memory_analysis() if jax.default_backend() == "cpu" else None
    if sizes is None:
        return
    needed = (sizes.temp_size_in_bytes + sizes.output_size_in_bytes) * jax.local_device_count() + more
    free = available()
    if needed > free:
        gib = 1 << 30
        raise SlimError(
            f"batch size {size:,} takes {needed / gib:,.1f} GiB of memory, and {free / gib:,.1f} GiB are free; "
            f"about {max(1, int(size * free / needed)):,} images fit"
        )
