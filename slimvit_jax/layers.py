"""The parts of a vision transformer block. Modules own parameters; the arithmetic is in `ops`.

Module names follow timm's and leaf names Flax's (kernel, scale, bias), so that weight conversion is a table of
renames and transposes. Parameters are float32; `dtype` is the type of matrix products and of the residual stream.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from slimvit_jax.ops import elementwise

truncated = nn.initializers.truncated_normal(0.02)


class Linear(nn.Module):
    """y = x W + b over the last axis; kernel (in, out) float32, product in `dtype`."""

    features: int
    use_bias: bool = True
    dtype: Any = jnp.float32
    kernel_init: nn.initializers.Initializer = truncated

    @nn.compact
    def __call__(self, x: Array, columns: slice = slice(None)) -> Array:
        """(..., in) to (..., out), or only these columns of it."""
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), jnp.float32)[:, columns]
        bias = None
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)[columns].astype(self.dtype)
        return elementwise.linear(x.astype(self.dtype), kernel.astype(self.dtype), bias)


class LayerNorm(nn.Module):
    """Layer normalisation over the last axis, statistics in float32, result in `dtype`."""

    eps: float = 1e-6
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
        return elementwise.layer_norm(x, scale, bias, self.eps).astype(self.dtype)


class LayerScale(nn.Module):
    """A learned gain per channel on a residual branch."""

    init_value: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        gamma = self.param("gamma", nn.initializers.constant(self.init_value), (x.shape[-1],), jnp.float32)
        return x * gamma.astype(x.dtype)


class DropPath(nn.Module):
    """Stochastic depth: while training, a whole branch of an image is zero with probability `rate`."""

    rate: float

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        if not train or self.rate == 0.0:
            return x
        keep = 1.0 - self.rate
        mask = jax.random.bernoulli(self.make_rng("dropout"), keep, (x.shape[0],) + (1,) * (x.ndim - 1))
        return jnp.where(mask, x / keep, 0).astype(x.dtype)


class PatchEmbed(nn.Module):
    """Non-overlapping patches to tokens: a strided convolution, written as one matrix product."""

    patch_size: tuple[int, int]
    features: int
    dtype: Any = jnp.float32
    use_bias: bool = True

    def setup(self) -> None:
        self.proj = _PatchProjection(self.patch_size, self.features, self.dtype, self.use_bias)

    def __call__(self, images: Array, train: bool = False, mask: Array | None = None) -> Array:
        """(B, H, W, C) images to (B, N, D) tokens in raster order."""
        return self.proj(images)

    def flops(self, img_size: tuple[int, int], in_chans: int) -> int:
        """Multiply-adds of one image."""
        return img_size[0] * img_size[1] * in_chans * self.features


class _PatchProjection(nn.Module):
    patch_size: tuple[int, int]
    features: int
    dtype: Any
    use_bias: bool

    @nn.compact
    def __call__(self, images: Array) -> Array:
        ph, pw = self.patch_size
        batch, height, width, channels = images.shape
        kernel_init = nn.initializers.lecun_normal(in_axis=(0, 1, 2))
        kernel = self.param("kernel", kernel_init, (ph, pw, channels, self.features), jnp.float32)
        patches = images.astype(self.dtype).reshape(batch, height // ph, ph, width // pw, pw, channels)
        patches = patches.transpose(0, 1, 3, 2, 4, 5).reshape(batch, (height // ph) * (width // pw), ph * pw * channels)
        tokens = patches @ kernel.astype(self.dtype).reshape(-1, self.features)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
            tokens = tokens + bias.astype(self.dtype)
        return tokens


class Mlp(nn.Module):
    """Linear, activation, linear.

    Attributes:
      hidden: width between the two.
      activation: "gelu" (exact), "gelu_tanh", "quick_gelu" or "silu".
      gated: the first layer is twice as wide, and its activated first half multiplies the second (SwiGLU, packed).
    """

    hidden: int
    dim: int
    drop: float = 0.0
    dtype: Any = jnp.float32
    activation: str = "gelu"
    gated: bool = False

    def setup(self) -> None:
        self.fc1 = Linear(self.hidden * (2 if self.gated else 1), dtype=self.dtype)
        self.fc2 = Linear(self.dim, dtype=self.dtype)
        self.dropout = nn.Dropout(self.drop)

    def __call__(self, y: Array, train: bool) -> Array:
        activate = elementwise.ACTIVATIONS[self.activation]
        if self.gated:
            gate, wide = jnp.split(self.fc1(y), 2, axis=-1)
            hidden = activate(gate) * wide
        else:
            hidden = activate(self.fc1(y))
        hidden = self.dropout(hidden, deterministic=not train)
        return self.dropout(self.fc2(hidden), deterministic=not train)
