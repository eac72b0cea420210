"""The algebra of life regression (Chen et al., "Life Regression based Patch Slimming for Vision Transformers").

Layers are numbered 1..T as in the paper; a patch of life tau is computed in layer t if and only if t <= tau.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array


def life_moments(counts: Sequence[int]) -> tuple[float, float]:
    """Mean and standard deviation of the lives that the budgets n_1..n_T imply: equations (9) and (10).

    n_t - n_{t+1} patches die after layer t and n_T live through all T layers. The printed (10) lacks the square of
    the deviations, which makes it identically zero; here it is there.

    >>> tuple(round(m, 4) for m in life_moments((196,) * 4 + (138,) * 3 + (97,) * 3 + (68,) * 2))
    (8.2908, 3.317)
    """
    deaths = [a - b for a, b in zip(counts, counts[1:], strict=False)] + [counts[-1]]
    mean = sum(t * dead for t, dead in enumerate(deaths, start=1)) / counts[0]
    variance = sum((t - mean) ** 2 * dead for t, dead in enumerate(deaths, start=1)) / counts[0]
    return mean, math.sqrt(variance)


def bilinear_scores(anchor: Array, patches: Array, weight: Array) -> Array:
    """s_i = anchor^T W x_i, equation (2), at a cost of D^2 + N D instead of the two full projections 2 N D^2.

    Args:
      anchor: (B, D), the normalised class token.
      patches: (B, N, D), the normalised patches.
      weight: (D, D), rows on the anchor's side.

    Returns:
      (B, N) float32.
    """
    projected = anchor.astype(jnp.float32) @ weight.astype(jnp.float32)
    return jnp.einsum("bd,bnd->bn", projected, patches.astype(jnp.float32))


def normalise_lives(scores: Array, mean: float | Array, std: float | Array) -> Array:
    """tau_i: the scores of each image moved to the target moments, equation (3).

    Where the scores of an image are alike up to float32 rounding (a constant image), dividing by their spread would
    amplify noise without bound; there they are only shifted, so that value and gradient stay finite.

    Args:
      scores: (B, N) float32.
      mean: mu of equation (9), for all images or (B, 1) for each.
      std: sigma of equation (10), likewise.

    Returns:
      (B, N) float32 lives.
    """
    centred = scores - scores.mean(axis=1, keepdims=True)
    variance = jnp.square(centred).mean(axis=1, keepdims=True)
    rounding = jnp.float32(1e-6) ** 2 * jnp.square(scores).mean(axis=1, keepdims=True)
    spread = jnp.sqrt(jnp.where(variance > rounding, variance, 1.0))
    return centred / spread * std + mean


def log_weight(lives: Array, layer: int, temperature: float) -> Array:
    """log beta_i(t) = log sigmoid(U (tau_i - t)): equation (7) with the sign that its Fig. 3 shows, as a logarithm.

    Args:
      lives: (...) float32 tau.
      layer: t, 1-based.
      temperature: U; the larger, the closer to the step function of equation (4).

    Returns:
      (...) float32, at most 0.
    """
    return jax.nn.log_sigmoid(temperature * (lives - layer))
