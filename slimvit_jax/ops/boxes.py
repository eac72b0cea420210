"""Rectangles of one image pasted into another: cutmix on pixels, MixToken on patch tokens."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array


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


def mirrored(x: Array, mask: Array | None = None) -> Array:
    """(B, ...) with every image replaced by the one it is mixed with: the one at the mirrored place of the batch.

    Args:
      x: (B, ...), anything of the images.
      mask: (B,), 0 for rows that only fill up the batch. The others are mirrored among themselves, as if there were
        only those, and these stay where they are. None: all count.
    """
    if mask is None:
        return x[::-1]
    counted = mask > 0

    def among_those_that_count() -> Array:
        order = jnp.argsort(~counted)  # stable: those that count, as they come
        place = jnp.cumsum(counted) - 1
        return x[jnp.where(counted, order[counted.sum() - 1 - place], jnp.arange(len(x)))]

    # A full batch, which is nearly every one, is only turned round: over many devices cheaper than picking rows.
    return jax.lax.cond(counted.all(), lambda: x[::-1], among_those_that_count)


def paste(tokens: Array, inside: Array, mask: Array | None = None) -> Array:
    """Image i has, inside the rectangle, the tokens of the image it is mixed with (`mirrored`).

    Args:
      tokens: (B, N, ...), whatever belongs to the patches: tokens, labels, predictions. Pasting twice undoes it.
      inside: (N,) bool.
      mask: see `mirrored`.
    """
    return jnp.where(inside.reshape(1, -1, *(1,) * (tokens.ndim - 2)), mirrored(tokens, mask), tokens)


def mixed_labels(labels: Array, inside: Array, mask: Array | None = None) -> Array:
    """The labels of the pasted images: both images' in the proportion of the patches that each gives.

    Args:
      labels: (B, C) distributions.
      inside: (N,) bool.
      mask: see `mirrored`.
    """
    pasted = inside.mean(dtype=labels.dtype)
    return (1 - pasted) * labels + pasted * mirrored(labels, mask)
