"""Rotary positions on a grid of patches: pairs of channels of queries and keys turn by angles linear in the place.

Angles are computed from coordinates, not from indices, so that a token keeps its place when it moves, and a token that
stands for several can be where they are on average.
"""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
from jax import Array


@dataclasses.dataclass(frozen=True)
class Rotary:
    """Which angles a place on the grid means.

    Attributes:
      grid: rows and columns.
      head_dim: channels per head, divisible by 4: a quarter of them turn by each coordinate, in pairs.
      kind: "cat" (EVA-02): coordinates count patches, 0, 1, ..., brought to the scale of the grid `reference`, angle =
        coordinate * temperature^(-k / (d/4)). "dinov3": centres of the patches between -1 and 1 along each axis,
        angle = 2 pi * coordinate * temperature^(-k / (d/4)). k = 0 .. d/4 - 1.
      temperature: see `kind`.
      rotate_half: channel c is paired with c + d/2; else with its neighbour.
      reference: the grid of the pretraining, which "cat" stretches every grid to; None: `grid`.
    """

    grid: tuple[int, int]
    head_dim: int
    kind: str = "cat"
    temperature: float = 10000.0
    rotate_half: bool = False
    reference: tuple[int, int] | None = None

    def coordinates(self) -> np.ndarray:
        """(N, 2) float32 row and column of every patch in raster order."""
        axes: list[np.ndarray] = []
        for axis, size in enumerate(self.grid):
            if self.kind == "dinov3":
                axes.append(2.0 * (np.arange(size) + 0.5) / size - 1.0)
            else:
                axes.append(np.arange(size) * ((self.reference or self.grid)[axis] / size))
        rows, columns = np.meshgrid(*axes, indexing="ij")
        return np.stack([rows, columns], axis=-1).reshape(-1, 2).astype(np.float32)

    @property
    def frequencies(self) -> np.ndarray:
        """(d/4,) float32 radians per unit of a coordinate."""
        quarter = self.head_dim // 4
        turns = self.temperature ** (-np.arange(quarter) / quarter)
        return (turns * (2.0 * math.pi if self.kind == "dinov3" else 1.0)).astype(np.float32)

    def angles(self, positions: Array) -> Array:
        """(B, n, 2) coordinates to (B, n, d) float32 angles, one per channel."""
        by_axis = positions.astype(jnp.float32)[..., None] * self.frequencies
        half = by_axis.reshape(*positions.shape[:-1], self.head_dim // 2)
        return jnp.concatenate([half, half], axis=-1) if self.rotate_half else jnp.repeat(half, 2, axis=-1)

    def turn(self, x: Array, angles: Array) -> Array:
        """Queries or keys (B, P + n, H, d), the last n turned by (B, n, d) angles; same shape and dtype."""
        prefix = x.shape[1] - angles.shape[1]
        wide = x[:, prefix:].astype(jnp.float32)
        if self.rotate_half:
            first, second = jnp.split(wide, 2, axis=-1)
            partner = jnp.concatenate([-second, first], axis=-1)
        else:
            partner = jnp.stack([-wide[..., 1::2], wide[..., ::2]], axis=-1).reshape(wide.shape)
        turned = wide * jnp.cos(angles)[:, :, None] + partner * jnp.sin(angles)[:, :, None]
        return jnp.concatenate([x[:, :prefix], turned.astype(x.dtype)], axis=1)
