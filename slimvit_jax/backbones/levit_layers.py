"""The layers of LeViT, under timm's names (timm/models/levit.py)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array

from slimvit_jax.layers import DropPath, truncated
from slimvit_jax.layers_conv import LinearNorm
from slimvit_jax.ops.attention import attention, class_attention
from slimvit_jax.plan import halved
from slimvit_jax.tokens import Tokens

Grid = tuple[int, int]


def bias_index(grid: Grid, stride: int = 1) -> np.ndarray:
    """Which entry of a table of H * W distances a query and a key share: |dy| * W + |dx|.

    Args:
      grid: rows and columns of the keys.
      stride: queries are every stride-th row and column.

    Returns:
      (queries, H * W) int array.
    """
    rows, columns = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    queries = (rows % stride == 0) & (columns % stride == 0)
    down = np.abs(rows[queries, None] - rows[None])
    across = np.abs(columns[queries, None] - columns[None])
    return down * grid[1] + across


@dataclasses.dataclass(frozen=True)
class Layer:
    """The sizes of one layer.

    Attributes:
      grid: of the tokens that come in.
      in_dim, dim: width of the tokens that come in and go out; equal unless it subsamples.
      heads, key, value: attention heads, channels of each for queries and keys, and for values.
      hidden: width of the MLP.
      down: it subsamples: queries are every second row and column, and the attention has no residual.
    """

    grid: Grid
    in_dim: int
    dim: int
    heads: int
    key: int
    value: int
    hidden: int
    down: bool

    @property
    def tokens(self) -> int:
        """Tokens that come in."""
        return self.grid[0] * self.grid[1]

    @property
    def left(self) -> int:
        """Tokens that go out."""
        rows, columns = halved(self.grid) if self.down else self.grid
        return rows * columns

    @property
    def bias_index(self) -> np.ndarray:
        """See `bias_index`."""
        return bias_index(self.grid, 2 if self.down else 1)

    def flops(self, tokens: int, left: int) -> int:
        """Multiply-adds on `tokens` that come in, of which `left` go out."""
        project = self.heads * self.in_dim * (tokens * (self.key + self.value) + left * self.key)
        attend = self.heads * left * tokens * (self.key + self.value)
        return project + attend + left * self.dim * (self.heads * self.value + 2 * self.hidden)


def subsample(x: Array, grid: Grid) -> Array:
    """Every second row and column of tokens (B, H * W, ...) in raster order."""
    square = x.reshape(x.shape[0], *grid, *x.shape[2:])[:, ::2, ::2]
    return square.reshape(x.shape[0], square.shape[1] * square.shape[2], *x.shape[2:])


class Projection(nn.Module):
    """Hard-swish, then linear and batch norm: timm's "proj"."""

    features: int
    zero: bool
    fused: bool
    dtype: Any

    def setup(self) -> None:
        self.ln = LinearNorm(self.features, self.zero, self.fused, self.dtype)

    def __call__(self, x: Array, train: bool, mask: Array | None = None) -> Array:
        return self.ln(nn.hard_swish(x), train, mask)


class Subsampled(nn.Module):
    """Every second row and column, then linear and batch norm: timm's "q" of a subsampling layer.

    Attributes:
      prefix: tokens in front of the grid, which stay.
    """

    features: int
    grid: Grid
    prefix: int
    fused: bool
    dtype: Any

    def setup(self) -> None:
        self.ln = LinearNorm(self.features, False, self.fused, self.dtype)

    def __call__(self, x: Array, train: bool, mask: Array | None = None) -> Array:
        patches = subsample(x[:, self.prefix :], self.grid)
        return self.ln(jnp.concatenate([x[:, : self.prefix], patches], axis=1) if self.prefix else patches, train, mask)


class LevitAttention(nn.Module):
    """Attention with one learned bias per head and distance, or, with a class token, with positions to subsample by.

    Attributes:
      layer: the sizes.
      prefix: 1 with a class token: then there are no biases, what subsamples adds positions to its tokens, and the
        probe has the class token's attention and this layer's share in the running one ("tradeoff"), see Evo-LeViT.
      fused: batch norms are folded into the linear layers and the biases expanded to (heads, queries, keys).
    """

    layer: Layer
    prefix: int
    fused: bool
    dtype: Any

    def setup(self) -> None:
        size, fused, dtype = self.layer, self.fused, self.dtype
        if size.down:
            self.kv = LinearNorm(size.heads * (size.key + size.value), False, fused, dtype)
            self.q = Subsampled(size.heads * size.key, size.grid, self.prefix, fused, dtype)
        else:
            self.qkv = LinearNorm(size.heads * (2 * size.key + size.value), False, fused, dtype)
        self.proj = Projection(size.dim, not size.down, fused, dtype)
        zeros = nn.initializers.zeros
        if not self.prefix:
            shape = (size.heads, *((size.left, size.tokens) if fused else (size.tokens,)))
            self.attention_biases = self.param("attention_biases", zeros, shape, jnp.float32)
            return
        self.learn_tradeoff = self.param("learn_tradeoff", zeros, (1,), jnp.float32)
        if size.down:
            self.poss = self.param("poss", truncated, (1, self.prefix + size.tokens, size.in_dim), jnp.float32)

    def queries_keys_values(self, x: Array, train: bool, mask: Array | None = None) -> tuple[Array, Array, Array]:
        """(B, queries, heads, key), (B, tokens, heads, key), (B, tokens, heads, value)."""
        batch, length, _ = x.shape
        heads, key = self.layer.heads, self.layer.key
        if self.layer.down:
            query = self.q(x, train, mask)
            query = query.reshape(batch, query.shape[1], heads, key)
            both = self.kv(x, train, mask).reshape(batch, length, heads, key + self.layer.value)
        else:  # split per head, not into one block each of queries, keys and values
            every = self.qkv(x, train, mask).reshape(batch, length, heads, 2 * key + self.layer.value)
            query, both = every[..., :key], every[..., key:]
        return query, both[..., :key], both[..., key:]

    def __call__(
        self, x: Array, needs: Sequence[str], train: bool, mask: Array | None = None
    ) -> tuple[Array, dict[str, Array]]:
        """(B, tokens, in_dim) to the branch (B, left, dim), and the probe."""
        bias = None
        if not self.prefix:
            bias = self.attention_biases if self.fused else self.attention_biases[:, self.layer.bias_index]
        elif self.layer.down:
            x = x + self.poss.astype(x.dtype)
        query, key, value = self.queries_keys_values(x, train, mask)
        out = attention(query, key, value, bias=bias, backend="xla")
        probe = {}
        if "class_attention" in needs:
            probe["class_attention"] = class_attention(query[:, :1], key)
        if "tradeoff" in needs:
            probe["tradeoff"] = nn.sigmoid(self.learn_tradeoff[0])
        return self.proj(out.reshape(*out.shape[:2], out.shape[2] * out.shape[3]), train, mask), probe


class LevitMlp(nn.Module):
    """Linear and batch norm, hard-swish, linear and batch norm."""

    hidden: int
    dim: int
    fused: bool
    dtype: Any

    def setup(self) -> None:
        self.ln1 = LinearNorm(self.hidden, False, self.fused, self.dtype)
        self.ln2 = LinearNorm(self.dim, True, self.fused, self.dtype)

    def __call__(self, x: Array, train: bool, mask: Array | None = None) -> Array:
        return self.ln2(nn.hard_swish(self.ln1(x, train, mask)), train, mask)


class LevitBlock(nn.Module):
    """One layer: an attention, residual unless it subsamples, and a residual MLP."""

    layer: Layer
    prefix: int
    drop_path: float
    fused: bool
    dtype: Any

    def setup(self) -> None:
        attend = LevitAttention(self.layer, self.prefix, self.fused, self.dtype)
        if self.layer.down:
            self.attn_downsample = attend
        else:
            self.attn = attend
        self.mlp = LevitMlp(self.layer.hidden, self.layer.dim, self.fused, self.dtype)
        self.stochastic_depth = DropPath(self.drop_path)

    def attend(self, tokens: Tokens, needs: Sequence[str], train: bool) -> tuple[Tokens, dict[str, Array]]:
        """The tokens after the attention, those of the smaller grid where it subsamples, and the probe."""
        if self.layer.down:
            x, probe = self.attn_downsample(tokens.x, needs, train, tokens.image_mask)
            origin = Tokens.of(x, self.prefix).origin
            return tokens.replace(x=x, origin=origin), probe
        branch, probe = self.attn(tokens.x, needs, train, tokens.image_mask)
        return tokens.add(self.stochastic_depth(branch, train)), probe

    def feed_forward(self, tokens: Tokens, train: bool) -> Array:
        """The MLP branch, still to be added to the tokens."""
        return self.stochastic_depth(self.mlp(tokens.x, train, tokens.image_mask), train)


class LevitStage(nn.Module):
    """The layers of one grid, led by the one that subsamples to it in all but the first stage."""

    layers: tuple[Layer, ...]
    prefix: int
    drop_path: float
    fused: bool
    dtype: Any

    def setup(self) -> None:
        block = lambda layer: LevitBlock(layer, self.prefix, self.drop_path, self.fused, self.dtype)
        if self.layers[0].down:
            self.downsample = block(self.layers[0])
        self.blocks = [block(layer) for layer in self.layers if not layer.down]

    def in_order(self) -> list[LevitBlock]:
        """The layers in their order."""
        return [self.downsample, *self.blocks] if self.layers[0].down else self.blocks
