"""Accuracy with every image counted once, and speed measured fairly.

`evaluate` walks batches of {"image", "label", "mask"} (slimvit_jax.data.eval_batches yields them) through one compiled
function; padding rows (mask 0) count nowhere. `measure_speed` times several models in turns, so that a machine whose
speed drifts slows all of them alike, and reports medians.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from slimvit_jax import fresh
from slimvit_jax.convert import rules
from slimvit_jax.errors import SlimError
from slimvit_jax.inference import memory, timing

Variables = Any
Lives = Callable[[int, int], np.ndarray]


@dataclasses.dataclass(frozen=True)
class EvalResult:
    """Counts of one pass over a labelled set; shares are in 0..1.

    `hits` is (count,) bool in the order of the images that this process saw: all of them where there is one process.
    """

    correct: int
    correct5: int
    count: int
    loss: float
    hits: np.ndarray
    scores: np.ndarray | None = None  # (count, N) float32 where the method has them: the lives for life regression

    @property
    def top1(self) -> float:
        return self.correct / self.count

    @property
    def top5(self) -> float:
        return self.correct5 / self.count

    @property
    def stderr(self) -> float:
        """Binomial standard error of `top1`, in 0..1."""
        return binomial_stderr(self.correct, self.count)

    def summary(self) -> dict[str, float | int]:
        return {
            "top1": self.top1,
            "top1_stderr": self.stderr,
            "top5": self.top5,
            "loss": self.loss,
            "correct": self.correct,
            "count": self.count,
        }


def binomial_stderr(correct: int, count: int) -> float:
    """sqrt(p (1 - p) / n) with p = correct / count."""
    share = correct / count
    return math.sqrt(share * (1.0 - share) / count)


def paired_difference(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Mean of first - second over the same images, and its standard error.

    Both are (n,) arrays of 0/1 outcomes (or of their means over several seeds). Pairing removes what the two share, so
    this is far sharper than comparing two binomial errors. A single image has an infinite error.
    """
    difference = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    if len(difference) < 2:
        return float(difference.mean()), math.inf
    return float(difference.mean()), float(difference.std(ddof=1) / math.sqrt(len(difference)))


class Outputs(NamedTuple):
    """What one batch gives: logits (B, classes) float32; scores (B, N) and the kept raster indices (B, n) after each
    drop, None for methods without them."""

    logits: jax.Array
    scores: jax.Array | None
    kept: tuple[jax.Array, ...] | None


class Inference:
    """A model's inference function, compiled once per batch shape and split over this process's devices.

    Calling it with float32 images (B, H, W, C) gives `Outputs`. `lives` (B, N) replaces the lives a life-regression
    model predicts, so that an order of one's own is measured.
    Variables are an argument of the compiled function: other weights of the same shapes compile nothing.
    """

    def __init__(self, model: Any, variables: Variables):
        mesh = Mesh(np.asarray(jax.local_devices()), ("data",))
        self.model = model
        self.devices = mesh.size
        self._split = NamedSharding(mesh, PartitionSpec("data"))
        self._whole = NamedSharding(mesh, PartitionSpec())
        self._take(variables)

        def forward(variables: Variables, images: jax.Array, lives: jax.Array | None) -> Outputs:
            extra = {} if lives is None else {"scores": lives}
            logits, aux = model.apply(variables, images, return_aux=True, **extra)
            return Outputs(logits.astype(jnp.float32), aux.scores, aux.kept)

        self._forward = jax.jit(forward)

    def with_variables(self, variables: Variables) -> Inference:
        """The same compiled function under other weights of the same shapes."""
        other = object.__new__(Inference)
        other.__dict__.update(self.__dict__)
        other._take(variables)
        return other

    def _take(self, variables: Variables) -> None:
        self._untrained = fresh.untrained(variables["params"].get("slim", {}), self.model.training_only)
        self.variables = jax.device_put(variables, self._whole)

    def put(self, array: np.ndarray) -> jax.Array:
        """Places a batch on the devices; its first axis is a multiple of `devices`."""
        return jax.device_put(np.asarray(array, np.float32), self._split)

    def __call__(self, images: Any, lives: Any = None) -> Outputs:
        fresh.say(self.model.slim.method, self._untrained)
        rows = len(images)
        pad = -rows % self.devices
        if pad:
            images = np.concatenate([np.asarray(images), np.repeat(np.asarray(images[-1:]), pad, 0)])
            lives = None if lives is None else np.concatenate([lives, np.repeat(lives[-1:], pad, 0)])
        outputs = self._forward(self.variables, self.put(images), None if lives is None else self.put(lives))
        return jax.tree.map(lambda a: a[:rows], outputs) if pad else outputs

    def timed_call(self, images: np.ndarray) -> Callable[[], None]:
        """A function that runs this batch, which already lies on the devices, and waits for the logits."""
        batch = self.put(images)
        return lambda: jax.block_until_ready(self._forward(self.variables, batch, None).logits)


def evaluate(
    model: Any,
    variables: Variables | None = None,
    batches: Iterable[Mapping[str, Any]] = (),
    *,
    lives: Lives | None = None,
    progress: Callable[[int], None] | None = None,
    across_processes: bool = True,
) -> EvalResult:
    """Runs `batches` through the model in inference and counts.

    `model` is a module with its `variables`, or an `Inference` (variables None). `lives(start, rows)` gives the lives
    (rows, N) to impose on images start..start+rows-1 of the pass. `progress` is called with the number of images done
    so far. Labels are (B,) class indices or (B, classes) distributions; a missing "mask" means all rows count. With
    several processes each one runs its own batches and the counts are summed, unless not `across_processes`. An empty
    set is a SlimError.
    """
    run = model if isinstance(model, Inference) else Inference(model, variables)
    hits: list[np.ndarray] = []
    all_scores: list[np.ndarray] = []
    correct5, loss, start = 0, 0.0, 0
    for batch in batches:
        images, label = batch["image"], np.asarray(batch["label"])
        mask = np.asarray(batch.get("mask", np.ones(len(label))), bool)
        imposed = None if lives is None else lives(start, len(label))
        outputs = run(images, imposed)
        logits = np.asarray(outputs.logits)
        label = label.argmax(-1) if label.ndim == 2 else label
        logits, label = logits[mask], label[mask]
        if label.size and not (0 <= label.min() and label.max() < logits.shape[1]):
            raise SlimError(
                f"a label is {label.min()} or {label.max()}, but the model has classes 0..{logits.shape[1] - 1}"
            )
        order = np.argsort(-logits, axis=1, kind="stable")[:, :5]
        hits.append(order[:, 0] == label)
        correct5 += int((order == label[:, None]).sum())
        shifted = logits - logits.max(1, keepdims=True)
        loss += float((np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(label)), label]).sum())
        if outputs.scores is not None and imposed is None:
            all_scores.append(np.asarray(outputs.scores)[mask])
        start += len(mask)
        if progress is not None:
            progress(start)
    outcome = np.concatenate(hits) if hits else np.zeros(0, bool)
    sums: list[float] = [int(outcome.sum()), correct5, len(outcome), loss]
    correct, five, count, total_loss = _over_processes(*sums) if across_processes else sums
    if count == 0:
        raise SlimError("the evaluation set has no images")
    return EvalResult(
        int(correct),
        int(five),
        int(count),
        total_loss / count,
        outcome,
        np.concatenate(all_scores) if all_scores else None,
    )


def _over_processes(*values: float) -> list[float]:
    """Sums each value over all processes; whole numbers stay exact."""
    if jax.process_count() == 1:
        return list(values)
    from jax.experimental import multihost_utils

    return [np.sum(multihost_utils.process_allgather(np.asarray(v))).item() for v in values]


def random_lives(num_patches: int, seed: int) -> Lives:
    """Lives that rank the patches of each image at random; image i of a pass has the same order at every budget."""

    def lives(start: int, rows: int) -> np.ndarray:
        return np.stack(
            [np.random.default_rng((seed, start + row)).random(num_patches, np.float32) for row in range(rows)]
        )

    return lives


@dataclasses.dataclass(frozen=True)
class Speed:
    """Times of one model over the rounds of `measure_speed`, in seconds per batch."""

    batch_size: int
    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def images_per_second(self) -> float:
        return self.batch_size / self.median


def measure_speed(
    models: Mapping[str, Inference | tuple[Any, Variables]],
    batch_size: int,
    *,
    rounds: int = 9,
    min_seconds: float = 0.05,
    images: np.ndarray | None = None,
) -> dict[str, Speed]:
    """Times each model on one batch, in turns: round after round, every model once, the order reversed each time.

    A sample repeats the batch until about `min_seconds` have passed, so that small models are not measured by the
    clock's grain. `images` (B, H, W, C) default to noise of the model's size. Compilation and warm-up are not counted.
    Input transfer is not either: the batch lies on the device.
    """
    runs = {name: m if isinstance(m, Inference) else Inference(*m) for name, m in models.items()}
    size = batch_size if images is None else len(images)
    samplers = {}
    for name, run in runs.items():
        if size % run.devices:
            raise SlimError(f"batch size {size} does not divide over {run.devices} devices")
        shape = (size, *run.model.img_size, run.model.in_chans)
        if images is None:
            memory.check_batch(run.model, size)
        batch = np.random.default_rng(0).standard_normal(shape, np.float32) if images is None else images
        samplers[name] = timing.sampler(run.timed_call(batch))
    timings = timing.interleave(samplers, rounds, min_seconds)
    return {name: Speed(size, timed.wall) for name, timed in timings.items()}


def count_parameters(model: Any, training: bool = False) -> int:
    """Numbers in the parameters that inference reads; nothing is allocated.

    Args:
      model: from create_model.
      training: those that only training reads instead (`Backbone.training_only`).
    """
    every = [leaf for leaf in rules.expected(model).values() if leaf.path[0] == rules.PARAMS]
    return sum(math.prod(leaf.shape) for leaf in every if rules.is_training_only(model, leaf.path) == training)


def best_classes(logits: Any, top: int, class_names: Sequence[str] | None) -> list[dict[str, Any]]:
    """The `top` most probable classes of one image's logits (classes,), as JSON has them: class, name, probability."""
    share = probabilities(logits[None])[0]
    name = lambda c: class_names[c] if class_names else f"class {c}"
    best = np.argsort(-share, kind="stable")[:top]
    return [{"class": int(c), "name": name(c), "probability": float(share[c])} for c in best]


def probabilities(logits: Any) -> np.ndarray:
    """(B, classes) softmax of logits, float64."""
    logits = np.asarray(logits, np.float64)
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)
