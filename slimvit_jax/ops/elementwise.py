"""The small parts of a transformer block: activations, normalisation and linear maps."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from slimvit_jax.ops.pieces import piece


@piece
def gelu(x: Array) -> Array:
    """x * Phi(x) with the error function (not the tanh approximation); any shape, computed in float32, dtype kept."""
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1.0 + jax.lax.erf(wide * 0.5**0.5))).astype(x.dtype)


def quick_gelu(x: Array) -> Array:
    """x * sigmoid(1.702 x), CLIP's approximation; any shape, computed in float32, dtype kept."""
    wide = x.astype(jnp.float32)
    return (wide * jax.nn.sigmoid(1.702 * wide)).astype(x.dtype)


@piece
def gelu_tanh(x: Array) -> Array:
    """The tanh approximation of GELU; any shape, computed in float32, dtype kept."""
    wide = x.astype(jnp.float32)
    inner = 0.7978845608028654 * (wide + 0.044715 * wide**3)
    return (0.5 * wide * (1.0 + jnp.tanh(inner))).astype(x.dtype)


def silu(x: Array) -> Array:
    """x * sigmoid(x); any shape, computed in float32, dtype kept."""
    wide = x.astype(jnp.float32)
    return (wide * jax.nn.sigmoid(wide)).astype(x.dtype)


ACTIVATIONS = {"gelu": gelu, "gelu_tanh": gelu_tanh, "quick_gelu": quick_gelu, "silu": silu}


@piece
def layer_norm(x: Array, scale: Array, bias: Array, eps: float) -> Array:
    """Normalise the last axis, then ``* scale + bias``.

    Mean and variance are float32, and the variance is that of the centred values: E[x^2] - E[x]^2 cancels for tokens
    far from zero.

    Args:
      x: (..., D) in the compute dtype.
      scale, bias: (D,) parameters.
      eps: added to the variance.

    Returns:
      (..., D) in the dtype of ``x``.
    """
    wide = x.astype(jnp.float32)
    centred = wide - wide.mean(-1, keepdims=True)
    factor = jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + eps)
    return (centred * factor * scale.astype(jnp.float32) + bias.astype(jnp.float32)).astype(x.dtype)


def unit(x: Array) -> Array:
    """(..., C) float32 vectors of length one, with a finite gradient at 0.

    A zero vector stays one: it is like nothing instead of NaN.
    """
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-24))


@piece
def linear(x: Array, kernel: Array, bias: Array | None = None) -> Array:
    """x W + b over the last axis: (..., in), (in, out) and (out,), all of one dtype, to (..., out)."""
    # As a product of two matrices: on CPU a training step of DeiT-S then takes an eighth less time.
    y = (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], kernel.shape[1])
    return y if bias is None else y + bias
