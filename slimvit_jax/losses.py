"""Training losses as pure functions: arrays in, a float32 scalar out. Means are over the batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

Array = jax.Array


def cross_entropy(logits: Array, targets: Array) -> Array:
    """Mean over the batch of -sum_c targets_c log softmax(logits)_c.

    Args:
      logits: (B, ..., C).
      targets: (B, ..., C) distributions.
    """
    return -(targets * jax.nn.log_softmax(logits.astype(jnp.float32))).sum(axis=-1).mean()


def class_head(logits: Array, taps: Mapping[str, Array]) -> Array:
    """What is held against the true labels: `logits`, the mean of all heads, unless a labeller teaches one of them."""
    return taps["head_logits"] if "label_logits" in taps and "head_logits" in taps else logits


def classification(logits: Array, taps: Mapping[str, Array], targets: Array) -> Array:
    """Cross-entropy; for a model with a distillation head and no labeller for it, the mean over its two heads."""
    if "dist_logits" in taps and "label_logits" not in taps:
        return (cross_entropy(taps["head_logits"], targets) + cross_entropy(taps["dist_logits"], targets)) / 2
    return cross_entropy(class_head(logits, taps), targets)


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


def hard_labels(logits: Array) -> Array:
    """(..., C) one-hot of the most probable class: what DeiT's distillation head learns from its teacher."""
    return jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1])


def token_labelling(token_logits: Array, targets: Array, origin: Array | None = None) -> Array:
    """Cross-entropy of every patch token with its own label, mean over patches and images (LV-ViT).

    Args:
      token_logits: (B, n, C) of the patches held at the end.
      targets: (B, N, C) distributions in raster order; no gradient flows into them.
      origin: (B, n) int, the raster index of each patch; -1 for a token that is no patch, which has no label and does
        not count. None: all N patches in raster order.
    """
    targets = jax.lax.stop_gradient(targets).astype(jnp.float32)
    if origin is None:
        return cross_entropy(token_logits, targets)
    own = jnp.take_along_axis(targets, jnp.maximum(origin, 0)[..., None], axis=1)
    there = (origin >= 0).astype(jnp.float32)
    each = -(own * jax.nn.log_softmax(token_logits.astype(jnp.float32))).sum(axis=-1)
    return (each * there).sum() / jnp.maximum(there.sum(), 1.0)


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
