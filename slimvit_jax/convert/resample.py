"""Position embeddings of another grid."""

from __future__ import annotations

import math

import jax
import numpy as np

from slimvit_jax.errors import SlimError


def resample_pos_embed(
    pos_embed: np.ndarray,
    new_grid: tuple[int, int],
    prefix_tokens: int = 1,
    old_grid: tuple[int, int] | None = None,
    antialias: bool = True,
) -> np.ndarray:
    """The position embedding for another patch grid: bicubic, antialiased as timm's resample_abs_pos_embed.

    When the grid shrinks, antialiasing widens the kernel. transformers resamples without it (ViT, DeiT, Dinov2, CLIP,
    SigLIP; Dinov2 with registers alone antialiases): its models, and whatever was trained or exported with them, expect
    `antialias=False`. From 37 x 37 to 16 x 16 positions (DINOv2 at 224 px) the features are clearly different.

    Args:
      pos_embed: (1, P + h * w, D) float; the P prefix positions come first and are kept as they are.
      new_grid: rows and columns wanted.
      prefix_tokens: P.
      old_grid: rows and columns of `pos_embed`; None means square.
      antialias: False for the plain bicubic interpolation of torch and transformers.

    Returns:
      (1, P + new_grid[0] * new_grid[1], D) float32.

    Raises:
      SlimError: the length is not that of `old_grid`, or of any square.
    """
    patches = pos_embed.shape[1] - prefix_tokens
    if old_grid is None:
        side = math.isqrt(max(patches, 0))
        old_grid = (side, side)
    if patches < 1 or old_grid[0] * old_grid[1] != patches:
        raise SlimError(
            f"pos_embed has {pos_embed.shape[1]} positions, {prefix_tokens} of them prefix tokens: the other {patches}"
            f" are not a {old_grid[0]} x {old_grid[1]} grid; give the grid they come from, "
            "resample_pos_embed=(rows, columns)"
        )
    prefix, patch_part = np.split(np.asarray(pos_embed, np.float32), [prefix_tokens], axis=1)
    width = pos_embed.shape[-1]
    image = patch_part.reshape(*old_grid, width)
    if antialias:
        # Keys' cubic with a = -1/2, widened when shrinking, renormalised at the border: the same kernel as torch's
        # antialiased bicubic interpolation (agreement about 1e-6)
        image = np.asarray(jax.image.resize(image, (*new_grid, width), "cubic", antialias=True))
    else:
        rows, columns = (_bicubic(old, new) for old, new in zip(old_grid, new_grid, strict=True))
        image = np.einsum("ri,cj,ijd->rcd", rows, columns, image, optimize=True).astype(np.float32)
    return np.concatenate([prefix, image.reshape(1, -1, width)], axis=1)


def _bicubic(old: int, new: int) -> np.ndarray:
    """(new, old) weights of torch's bicubic interpolation: Keys' cubic with a = -3/4, the border repeated."""
    centre = (np.arange(new) + 0.5) * old / new - 0.5
    first = np.floor(centre).astype(int)
    weights = np.zeros((new, old))
    for tap in range(-1, 3):
        x = np.abs(centre - (first + tap))
        near = 1.25 * x**3 - 2.25 * x**2 + 1
        far = -0.75 * (x**3 - 5 * x**2 + 8 * x - 4)
        np.add.at(weights, (np.arange(new), np.clip(first + tap, 0, old - 1)), np.where(x <= 1, near, far))
    return weights
