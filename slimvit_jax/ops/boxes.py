"""Rectangles of one image pasted into another: cutmix on pixels, MixToken on patch tokens."""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array


def cut_box(key: Array, share: Array, height: int, width: int) -> Array:
    """(B, H, W) True inside a rectangle of about `share` (B,) of the area, its centre uniform, cut off at the
    border.
    """
    y_key, x_key = jax.random.split(key)
    side = jnp.sqrt(share)
    box = []
    for axis_key, length in ((y_key, height), (x_key, width)):
        half = (side * length).astype(jnp.int32) // 2
        centre = jax.random.randint(axis_key, share.shape, 0, length)
        low, high = jnp.clip(centre - half, 0, length), jnp.clip(centre + half, 0, length)
        place = jnp.arange(length)
        box.append((place >= low[:, None]) & (place < high[:, None]))
    return box[0][:, :, None] & box[1][:, None, :]


def token_box(key: Array, rows: int, columns: int) -> Array:
    """MixToken's rectangle on the grid of patches, the same for a whole batch (tlt/models/lvvit.py of TokenLabeling).

    Its share of the area is drawn from Beta(1, 1), which is uniform.

    Returns:
      (rows * columns,) bool in raster order, True inside.
    """
    share_key, box_key = jax.random.split(key)
    return cut_box(box_key, jax.random.uniform(share_key, (1,)), rows, columns).reshape(-1)


def paste(tokens: Array, inside: Array) -> Array:
    """Image i has, inside the rectangle, the tokens of the image at the mirrored place of the batch.

    Args:
      tokens: (B, N, ...), whatever belongs to the patches: tokens, labels, predictions. Pasting twice undoes it.
      inside: (N,) bool.
    """
    return jnp.where(inside.reshape(1, -1, *(1,) * (tokens.ndim - 2)), tokens[::-1], tokens)


def mixed_labels(labels: Array, inside: Array) -> Array:
    """The labels of the pasted images: both images' in the proportion of the patches that each gives.

    Args:
      labels: (B, C) distributions.
      inside: (N,) bool.
    """
    pasted = inside.mean(dtype=labels.dtype)
    return (1 - pasted) * labels + pasted * labels[::-1]
