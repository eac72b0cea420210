"""Training losses as pure functions: arrays in, a float32 scalar out. Means are over the batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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


def keep_ratio(decisions: Sequence[Array], ratios: Sequence[float], per_image: bool = True) -> Array:
    """Mean over the stages s of the squared deviation of the kept share from its target (DynamicViT).

    Args:
      decisions: per stage (B, N), 1 keeps and 0 drops.
      ratios: per stage, the wanted share of the N patches.
      per_image: mean over the images of (mean_n d - ratio)^2; else (mean over images and patches - ratio)^2.
    """
    axis = 1 if per_image else None
    deviations = [
        jnp.square(kept.astype(jnp.float32).mean(axis=axis) - ratio).mean()
        for kept, ratio in zip(decisions, ratios, strict=True)
    ]
    return sum(deviations[1:], deviations[0]) / len(deviations)


def token_distillation(tokens: Array, teacher_tokens: Array, kept: Array, kind: str = "mse") -> Array:
    """Distance to the teacher's tokens over the kept patches of all images together; 0 where nothing is kept.

    Args:
      tokens: (B, N, D) of the student, after the final norm.
      teacher_tokens: (B, N, D); no gradient flows into them.
      kept: (B, N), 1 for the patches that count; no gradient flows into it.
      kind: "mse", mean over tokens and channels; "kl", KL(teacher || student) of the softmax over channels, mean over
        tokens.
    """
    student = tokens.astype(jnp.float32)
    teacher = jax.lax.stop_gradient(teacher_tokens).astype(jnp.float32)
    weights = jax.lax.stop_gradient(kept > 0.5).astype(jnp.float32)
    if kind == "mse":
        distance = jnp.square(student - teacher).mean(axis=-1)
    else:
        student, teacher = jax.nn.log_softmax(student), jax.nn.log_softmax(teacher)
        distance = (jnp.exp(teacher) * (teacher - student)).sum(axis=-1)
    return (distance * weights).sum() / jnp.maximum(weights.sum(), 1.0)
