"""Batch normalisation and the convolutional stems of LV-ViT and LeViT."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from slimvit_jax.errors import SlimError
from slimvit_jax.layers import Linear
from slimvit_jax.ops import elementwise

#: (output channels, stride) of every 3x3 convolution of a stem.
StemLayers = Sequence[tuple[int, int]]
torch_default = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class BatchNorm(nn.Module):
    """Normalisation per channel (the last axis) over everything else, statistics in float32, result in `dtype`.

    Batch statistics are used, and move the running ones, where `train` is set and the collection "batch_stats" is
    mutable: `apply(..., train=True, mutable=["batch_stats"])`. Otherwise the running statistics are used and stay as
    they are, so a train step that leaves the collection alone has a frozen batch norm. Over an array that is sharded
    under `jit` the mean is that of the whole batch: no axis name is needed. A mask (B,) leaves images out: rows that
    only fill up the batch.

    The running variance is the unbiased one, as in PyTorch (flax's own module keeps the biased one), so that training
    continues from a PyTorch checkpoint with the statistics PyTorch would have.

    Attributes:
      eps: added to the variance.
      momentum: weight of the new statistics in the running ones (PyTorch's meaning).
      scale_init: of the gain; zeros for the last norm of a residual branch.
    """

    eps: float = 1e-5
    momentum: float = 0.1
    dtype: Any = jnp.float32
    scale_init: nn.initializers.Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, x: Array, train: bool, mask: Array | None = None) -> Array:
        channels = x.shape[-1]
        mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)
        scale = self.param("scale", self.scale_init, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        wide = x.astype(jnp.float32)
        centre, spread = mean.value, var.value
        if train and self.is_mutable_collection("batch_stats") and not self.is_initializing():
            axes = tuple(range(x.ndim - 1))
            there = None if mask is None else jnp.expand_dims(mask > 0, tuple(range(1, x.ndim)))
            images = x.shape[0] if mask is None else (mask > 0).sum(dtype=jnp.float32)
            count = images * (x.size // (len(x) * channels))
            mean_of = lambda values: values.sum(axes, where=there) / jnp.maximum(count, 1)
            centre = mean_of(wide)
            spread = mean_of(jnp.square(wide - centre))
            rate = self.momentum * jnp.minimum(count, 1)  # nothing to learn of a batch in which no image counts
            mean.value += rate * (centre - mean.value)
            var.value += rate * (spread * count / jnp.maximum(count - 1, 1) - var.value)
        return ((wide - centre) * (scale * jax.lax.rsqrt(spread + self.eps)) + bias).astype(self.dtype)


def conv3x3(features: int, stride: int, use_bias: bool, dtype: Any, name: str) -> nn.Conv:
    """A padded 3x3 convolution; an image of even size shrinks by exactly `stride`."""
    return nn.Conv(
        features,
        (3, 3),
        strides=stride,
        padding=((1, 1), (1, 1)),
        use_bias=use_bias,
        dtype=dtype,
        kernel_init=torch_default,
        name=name,
    )


def stem_layers(kind: str, dim: int) -> StemLayers:
    """The convolutions of LV-ViT's "4c" and "6c" stems (models/lvvit.py of Sense-X/SiT); LeViT's stem is "4c" too."""
    first = ((dim // 8, 2),) if kind == "4c" else ((dim // 8, 2), (dim // 8, 1), (dim // 8, 1))
    return (*first, (dim // 4, 2), (dim // 2, 2), (dim, 2))


class ConvStem(nn.Module):
    """3x3 convolutions, each with a batch norm, with an activation between them; none after the last.

    Attributes:
      layers: see `stem_layers`.
      activation: between the layers.
      fused: the batch norms are folded into the convolutions, which then have a bias; inference only.
    """

    layers: StemLayers
    activation: Callable[[Array], Array] = elementwise.gelu
    fused: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: Array, train: bool, mask: Array | None = None) -> Array:
        """(B, H, W, C) images to (B, N, D) tokens in raster order."""
        if self.fused and train:
            raise SlimError("a fused model is for inference only: its batch norms are gone")
        x = images.astype(self.dtype)
        for i, (features, stride) in enumerate(self.layers, start=1):
            x = self.layer(i, features, stride, x, train, mask)
            if i < len(self.layers):
                x = self.activation(x)
        return x.reshape(x.shape[0], x.shape[1] * x.shape[2], x.shape[3])

    def flops(self, img_size: tuple[int, int], in_chans: int) -> int:
        """Multiply-adds of the convolutions on one image."""
        (height, width), channels, total = img_size, in_chans, 0
        for features, stride in self.layers:
            height, width = height // stride, width // stride
            total += height * width * 9 * channels * features
            channels = features
        return total

    def layer(self, i: int, features: int, stride: int, x: Array, train: bool, mask: Array | None) -> Array:
        """Convolution and norm number i (from 1), under the names of LV-ViT."""
        x = conv3x3(features, stride, self.fused, self.dtype, f"conv{i}")(x)
        return x if self.fused else BatchNorm(dtype=self.dtype, name=f"bn{i}")(x, train, mask)


class ConvNorm(nn.Module):
    """A 3x3 convolution and a batch norm, under LeViT's names."""

    features: int
    stride: int
    fused: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool, mask: Array | None = None) -> Array:
        x = conv3x3(self.features, self.stride, self.fused, self.dtype, "linear")(x)
        return x if self.fused else BatchNorm(dtype=self.dtype, name="bn")(x, train, mask)


class LinearNorm(nn.Module):
    """A linear layer without bias and a batch norm; fused, a linear layer with bias.

    Attributes:
      zero: the norm's gain starts at zero, so that a residual branch starts as nothing.
    """

    features: int
    zero: bool = False
    fused: bool = False
    dtype: Any = jnp.float32

    def setup(self) -> None:
        self.linear = Linear(self.features, use_bias=self.fused, dtype=self.dtype, kernel_init=torch_default)
        if not self.fused:
            gain = nn.initializers.zeros if self.zero else nn.initializers.ones
            self.bn = BatchNorm(dtype=self.dtype, scale_init=gain)

    def __call__(self, x: Array, train: bool, mask: Array | None = None) -> Array:
        x = self.linear(x)
        return x if self.fused else self.bn(x, train, mask)


class NormLinear(nn.Module):
    """Batch norm, dropout and a linear layer with bias: a head of LeViT; fused, the linear layer alone. float32."""

    features: int
    drop: float = 0.0
    fused: bool = False

    def setup(self) -> None:
        if not self.fused:
            self.bn = BatchNorm()
        self.linear = Linear(self.features)
        self.dropout = nn.Dropout(self.drop)

    def __call__(self, x: Array, train: bool, mask: Array | None = None) -> Array:
        x = x if self.fused else self.bn(x, train, mask)
        return self.linear(self.dropout(x, deterministic=not train))
