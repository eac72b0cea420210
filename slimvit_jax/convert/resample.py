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
) -> np.ndarray:
    """The position embedding for another patch grid: antialiased bicubic, as timm's resample_abs_pos_embed.

    Args:
      pos_embed: (1, P + h * w, D) float; the P prefix positions come first and are kept as they are.
      new_grid: rows and columns wanted.
      prefix_tokens: P.
      old_grid: rows and columns of `pos_embed`; None means square.

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
    # Keys' cubic with a = -1/2, widened when shrinking, renormalised at the border: the same kernel as torch's
    # antialiased bicubic interpolation (agreement about 1e-6)
    image = np.asarray(jax.image.resize(image, (*new_grid, width), "cubic", antialias=True))
    return np.concatenate([prefix, image.reshape(1, -1, width)], axis=1)
