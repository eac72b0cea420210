"""Training losses as pure functions: arrays in, one float32 value per image out.

What is averaged is averaged in one place, `mean`, over the images that count. A loss of the whole batch (a share of
something among all images) gives every image the value whose mean over the counted images is that loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array

from slimvit_jax.tokens import Aux


class Predictions(flax.struct.PyTreeNode):
    """What a labeller, a fixed network of any kind, says about the images.

    Attributes:
      logits: (B, C).
      tokens: (B, N, C) logits of every patch in raster order, where they are wanted.
    """

    logits: Array
    tokens: Array | None = None


class Targets(flax.struct.PyTreeNode):
    """Everything a model's outputs are compared with.

    Attributes:
      labels: (B, C) float distributions, also of images that do not count.
      mask: (B,) float32, 1 for images that count and 0 for rows that only fill up the batch; None: all count.
      teacher: (logits, aux) of the frozen dense model on the same images, where the training has one.
      labeller: what another network says of them, where there is one.
      second: of a method with `second_passes`, logits (B, C) and class token (B, D), after the final norm, of the
        second pass; gradient flows into both.
    """

    labels: Array
    mask: Array | None = None
    teacher: tuple[Array, Aux] | None = None
    labeller: Predictions | None = None
    second: tuple[Array, Array] | None = None


def total(values: Array, mask: Array | None = None) -> Array:
    """The sum over the last axis, (..., B) to (...), of the images that count; others may hold anything."""
    return values.sum(axis=-1) if mask is None else jnp.where(mask > 0, values, 0.0).sum(axis=-1)


def count(values: Array, mask: Array | None = None) -> Array:
    """How many of the B images of (..., B) values count, float32, and at least 1."""
    size = jnp.float32(values.shape[-1]) if mask is None else (mask > 0).sum(dtype=jnp.float32)
    return jnp.maximum(size, 1.0)


def mean(values: Array, mask: Array | None = None) -> Array:
    """The mean over the last axis, (..., B) to (...), of the images that count; 0 where none does."""
    return total(values, mask) / count(values, mask)


def of_the_batch(value: Array, like: Array) -> Array:
    """A loss () of a batch as a whole, as one value per image of `like` (B, ...): each has it."""
    return jnp.broadcast_to(value.astype(jnp.float32), like.shape[:1])


def _share(sums: Array, weights: Array, mask: Array | None) -> Array:
    """(B,) whose mean over the images is the quotient of the sums of both (B,) over the images; 0 for 0 / 0."""
    average = mean(weights, mask)
    return sums / jnp.where(average > 0, average, 1.0)


def cross_entropy(logits: Array, targets: Array) -> Array:
    """-sum_c targets_c log softmax(logits)_c, (B,): the mean over the axes between batch and classes, if there are any.

    Args:
      logits: (B, ..., C).
      targets: (B, ..., C) distributions.
    """
    each = -(targets * jax.nn.log_softmax(logits.astype(jnp.float32))).sum(axis=-1)
    return each.mean(axis=tuple(range(1, each.ndim)))


def class_head(logits: Array, taps: Mapping[str, Array], targets: Targets) -> Array:
    """What is held against the true labels: `logits`, the mean of all heads, unless a labeller teaches one of them."""
    return taps["head_logits"] if targets.labeller is not None and "head_logits" in taps else logits


def classification(logits: Array, taps: Mapping[str, Array], targets: Targets) -> Array:
    """Cross-entropy (B,); for a model with a distillation head and no labeller for it, the mean over its two heads."""
    if "dist_logits" in taps and targets.labeller is None:
        heads = (taps["head_logits"], taps["dist_logits"])
        return (cross_entropy(heads[0], targets.labels) + cross_entropy(heads[1], targets.labels)) / 2
    return cross_entropy(class_head(logits, taps, targets), targets.labels)


def distillation(logits: Array, teacher_logits: Array, temperature: float = 1.0) -> Array:
    """T^2 KL(teacher || student) of the softened predictions, summed over classes, (B,).

    Args:
      logits: (B, C) of the student.
      teacher_logits: (B, C); no gradient flows into them.
      temperature: T.
    """
    student = jax.nn.log_softmax(logits.astype(jnp.float32) / temperature)
    teacher = jax.nn.log_softmax(jax.lax.stop_gradient(teacher_logits).astype(jnp.float32) / temperature)
    return temperature**2 * (jnp.exp(teacher) * (teacher - student)).sum(axis=-1)


def consistency(features: Array, others: Array, confident: Array, mask: Array | None = None) -> Array:
    """Mean squared distance of (B, D) features to `others`, (B,); its mean is that over all confident images.

    0 where no image is.

    Args:
      features: (B, D).
      others: (B, D); no gradient flows into them.
      confident: (B,), 1 for the images that count here and 0 for others.
      mask: of `Targets`.
    """
    distance = jnp.square(features.astype(jnp.float32) - jax.lax.stop_gradient(others).astype(jnp.float32)).mean(
        axis=-1
    )
    return _share(distance * confident, confident, mask)


def confidence(logits: Array, labels: Array) -> Array:
    """(B,): the probability of the classes that an image is of: all of more than the least weight among its labels.

    Args:
      logits: (B, C); no gradient flows into them.
      labels: (B, C) distributions, mixed and smoothed.
    """
    named = labels > labels.min(axis=-1, keepdims=True)
    return (jax.nn.softmax(jax.lax.stop_gradient(logits).astype(jnp.float32)) * named).sum(axis=-1)


def hard_labels(logits: Array) -> Array:
    """(..., C) one-hot of the most probable class: what DeiT's distillation head learns from its teacher."""
    return jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1])


def token_labelling(
    token_logits: Array, targets: Array, origin: Array | None = None, mask: Array | None = None
) -> Array:
    """Cross-entropy of every patch token with its own label, (B,); its mean is that over all patches of all images.

    Args:
      token_logits: (B, n, C) of the patches held at the end.
      targets: (B, N, C) distributions in raster order; no gradient flows into them.
      origin: (B, n) int, the raster index of each patch; -1 for a token that is no patch, which has no label and does
        not count. None: all N patches in raster order.
      mask: of `Targets`.
    """
    targets = jax.lax.stop_gradient(targets).astype(jnp.float32)
    if origin is None:
        return cross_entropy(token_logits, targets)
    own = jnp.take_along_axis(targets, jnp.maximum(origin, 0)[..., None], axis=1)
    there = (origin >= 0).astype(jnp.float32)
    each = -(own * jax.nn.log_softmax(token_logits.astype(jnp.float32))).sum(axis=-1)
    return _share((each * there).sum(axis=1), there.sum(axis=1), mask)


def keep_ratio(
    decisions: Sequence[Array], ratios: Sequence[float], per_image: bool = True, mask: Array | None = None
) -> Array:
    """Mean over the stages s of the squared deviation of the kept share from its target (DynamicViT), (B,).

    Args:
      decisions: per stage (B, N), 1 keeps and 0 drops.
      ratios: per stage, the wanted share of the N patches.
      per_image: (mean_n d - ratio)^2 of every image; else (mean over images and patches - ratio)^2 of the batch.
      mask: of `Targets`.
    """
    shares = jnp.stack([kept.astype(jnp.float32).mean(axis=1) for kept in decisions])  # (S, B)
    wanted = jnp.asarray(tuple(ratios), jnp.float32)
    if per_image:
        return jnp.square(shares - wanted[:, None]).mean(axis=0)
    return of_the_batch(jnp.square(mean(shares, mask) - wanted).mean(), decisions[0])


def token_distillation(
    tokens: Array, teacher_tokens: Array, kept: Array, kind: str = "mse", mask: Array | None = None
) -> Array:
    """Distance to the teacher's tokens, (B,); its mean is that over the kept patches of all images together.

    0 where nothing is kept.

    Args:
      tokens: (B, N, D) of the student, after the final norm.
      teacher_tokens: (B, N, D); no gradient flows into them.
      kept: (B, N), 1 for the patches that count; no gradient flows into it.
      kind: "mse", mean over tokens and channels; "kl", KL(teacher || student) of the softmax over channels, mean over
        tokens.
      mask: of `Targets`.
    """
    student = tokens.astype(jnp.float32)
    teacher = jax.lax.stop_gradient(teacher_tokens).astype(jnp.float32)
    weights = jax.lax.stop_gradient(kept > 0.5).astype(jnp.float32)
    if kind == "mse":
        distance = jnp.square(student - teacher).mean(axis=-1)
    else:
        student, teacher = jax.nn.log_softmax(student), jax.nn.log_softmax(teacher)
        distance = (jnp.exp(teacher) * (teacher - student)).sum(axis=-1)
    return _share((distance * weights).sum(axis=1), weights.sum(axis=1), mask)
