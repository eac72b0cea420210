"""Training losses as pure functions: arrays in, a float32 scalar out. Means are over the batch."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

Array = jax.Array


def cross_entropy(logits: Array, targets: Array) -> Array:
    """Mean over the batch of -sum_c targets_c log softmax(logits)_c.

    Args:
      logits: (B, C).
      targets: (B, C) distributions.
    """
    return -(targets * jax.nn.log_softmax(logits.astype(jnp.float32))).sum(axis=-1).mean()


def classification(logits: Array, taps: Mapping[str, Array], targets: Array) -> Array:
    """Cross-entropy; for a model with a distillation head and no teacher for it, the mean over its two heads."""
    if "dist_logits" in taps:
        return (cross_entropy(taps["head_logits"], targets) + cross_entropy(taps["dist_logits"], targets)) / 2
    return cross_entropy(logits, targets)


def distillation(logits: Array, teacher_logits: Array, temperature: float = 1.0) -> Array:
    """T^2 KL(teacher || student) of the softened predictions, summed over classes, mean over the batch.

    Args:
      logits: (B, C) of the student.
      teacher_logits: (B, C); no gradient flows into them.
      temperature: T.
    """
    student = jax.nn.log_softmax(logits.astype(jnp.float32) / temperature)
    teacher = jax.nn.log_softmax(jax.lax.stop_gradient(teacher_logits).astype(jnp.float32) / temperature)
    return temperature**2 * (jnp.exp(teacher) * (teacher - student)).sum(axis=-1).mean()


def hard_distillation(dist_logits: Array, teacher_logits: Array) -> Array:
    """Cross-entropy of the distillation head against the teacher's most probable class (DeiT)."""
    hard = jax.nn.one_hot(jnp.argmax(teacher_logits, axis=-1), teacher_logits.shape[-1])
    return cross_entropy(dist_logits, hard)
