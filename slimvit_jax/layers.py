"""The parts of a vision transformer block. Modules own parameters; the arithmetic is in `ops`.

Module names follow timm's and leaf names Flax's (kernel, scale, bias), so that weight conversion is a table of
renames and transposes. Parameters are float32; `dtype` is the type of matrix products and of the residual stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from slimvit_jax.ops import attention as attention_ops
from slimvit_jax.ops import elementwise
from slimvit_jax.tokens import Tokens

Array = jax.Array
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
        # As a product of two matrices: on CPU a training step of DeiT-S then takes an eighth less time.
        flat = x.astype(self.dtype).reshape(-1, x.shape[-1])
        y = (flat @ kernel.astype(self.dtype)).reshape(*x.shape[:-1], kernel.shape[1])
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)[columns].astype(self.dtype)
        return y


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

    def __call__(self, images: Array) -> Array:
        """(B, H, W, C) images to (B, N, D) tokens in raster order."""
        return self.proj(images)


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


class Attention(nn.Module):
    """Multi-head self-attention over the tokens, with what a method asks to see of it.

    Attributes:
      dim: D.
      num_heads: H; must divide D.
      qkv_bias: whether the projection to queries, keys and values has a bias.
      qk_norm: layer-normalise queries and keys per head (over D / H channels) before the product.
      eps: of those norms.
      backend: "auto", "xla" or "cudnn"; see `ops.attention.attention`.
    """

    dim: int
    num_heads: int
    qkv_bias: bool = True
    qk_norm: bool = False
    proj_drop: float = 0.0
    eps: float = 1e-6
    dtype: Any = jnp.float32
    backend: str = "auto"

    def setup(self) -> None:
        self.qkv = Linear(3 * self.dim, use_bias=self.qkv_bias, dtype=self.dtype)
        if self.qk_norm:
            self.q_norm, self.k_norm = LayerNorm(self.eps, self.dtype), LayerNorm(self.eps, self.dtype)
        self.proj = Linear(self.dim, dtype=self.dtype)
        self.dropout = nn.Dropout(self.proj_drop)

    def __call__(
        self,
        y: Array,
        log_weight: Array | None,
        policy: Array | None,
        needs: Sequence[str],
        train: bool,
    ) -> tuple[Array, dict[str, Array]]:
        """Returns the branch (B, M, D) and the probe, a dict with the entries named in `needs`."""
        batch, length, _ = y.shape
        qkv = self.qkv(y).reshape(batch, length, 3, self.num_heads, self.dim // self.num_heads)
        query, key, value = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        probe = {"inputs": y, "keys": key, "values": value}
        if self.qk_norm:
            query, key = self.q_norm(query), self.k_norm(key)
        if policy is not None:
            out = attention_ops.policy_attention(query, key, value, policy, log_weight=log_weight)
        elif "attention" in needs:
            weights = attention_ops.attention_probabilities(query, key, log_weight=log_weight)
            probe |= {"attention": weights, "class_attention": weights[:, :, 0]}
            out = jnp.einsum("bhqk,bkhd->bqhd", weights.astype(value.dtype), value)
        else:
            out = attention_ops.attention(query, key, value, log_weight=log_weight, backend=self.backend)
        if "class_attention" in needs and "class_attention" not in probe:
            # One extra query row, so that a fused attention kernel stays usable for everything else.
            probe["class_attention"] = attention_ops.class_attention(query[:, :1], key, log_weight=log_weight)
        return self.project(out, train), {name: probe[name] for name in needs}

    def probabilities(self, y: Array, log_weight: Array | None) -> Array:
        """(B, H, M, M) float32, the softmax alone; values are not computed."""
        query, key = (self._part(y, part) for part in (0, 1))
        if self.qk_norm:
            query, key = self.q_norm(query), self.k_norm(key)
        return attention_ops.attention_probabilities(query, key, log_weight=log_weight)

    def values(self, y: Array) -> Array:
        """(B, M, H, D / H)."""
        return self._part(y, 2)

    def project(self, out: Array, train: bool) -> Array:
        """The branch (B, M, D) of what the heads have read, (B, M, H, D / H)."""
        return self.dropout(self.proj(out.reshape(*out.shape[:2], self.dim)), deterministic=not train)

    def _part(self, y: Array, part: int) -> Array:
        columns = slice(part * self.dim, (part + 1) * self.dim)
        return self.qkv(y, columns).reshape(*y.shape[:2], self.num_heads, self.dim // self.num_heads)


class Mlp(nn.Module):
    """Linear, exact GELU, linear."""

    hidden: int
    dim: int
    drop: float = 0.0
    dtype: Any = jnp.float32

    def setup(self) -> None:
        self.fc1 = Linear(self.hidden, dtype=self.dtype)
        self.fc2 = Linear(self.dim, dtype=self.dtype)
        self.dropout = nn.Dropout(self.drop)

    def __call__(self, y: Array, train: bool) -> Array:
        hidden = self.dropout(elementwise.gelu(self.fc1(y)), deterministic=not train)
        return self.dropout(self.fc2(hidden), deterministic=not train)


class Block(nn.Module):
    """A pre-norm transformer layer, as its two residual branches.

    Attributes:
      mlp_ratio: hidden width of the MLP over D.
      init_values: initial LayerScale gain, None for none.
      drop_path: stochastic depth of both branches.
      residual_scale: both branches are divided by it (LV-ViT's skip_lam).
    """

    dim: int
    num_heads: int
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    qk_norm: bool = False
    init_values: float | None = None
    proj_drop: float = 0.0
    drop_path: float = 0.0
    eps: float = 1e-6
    residual_scale: float = 1.0
    dtype: Any = jnp.float32
    backend: str = "auto"

    def setup(self) -> None:
        self.norm1 = LayerNorm(self.eps, self.dtype)
        self.attn = Attention(
            self.dim, self.num_heads, self.qkv_bias, self.qk_norm, self.proj_drop, self.eps, self.dtype, self.backend
        )
        self.norm2 = LayerNorm(self.eps, self.dtype)
        self.mlp = Mlp(int(self.dim * self.mlp_ratio), self.dim, self.proj_drop, self.dtype)
        if self.init_values is not None:
            self.ls1, self.ls2 = LayerScale(self.init_values), LayerScale(self.init_values)
        self.stochastic_depth = DropPath(self.drop_path)

    def attend(self, tokens: Tokens, needs: Sequence[str], train: bool) -> tuple[Array, dict[str, Array]]:
        """The attention branch (B, P + n, D), still to be added to the tokens, and the probe."""
        y = _masked(self.norm1(tokens.x), tokens.input_mask)
        branch, probe = self.attn(y, tokens.key_log_weight, tokens.policy, needs, train)
        return self._scaled(branch, "ls1", train), probe

    def attention_map(self, tokens: Tokens) -> Array:
        """(B, H, P + n, P + n) float32: who looks at whom, softmaxed over the keys."""
        y = _masked(self.norm1(tokens.x), tokens.input_mask)
        return self.attn.probabilities(y, tokens.key_log_weight)

    def attention_values(self, tokens: Tokens) -> Array:
        """(B, P + n, H, D / H): what there is to read at each token."""
        return self.attn.values(_masked(self.norm1(tokens.x), tokens.input_mask))

    def attention_branch(self, read: Array, train: bool) -> Array:
        """The attention branch (B, P + n, D) of what was read, (B, P + n, D), before the output projection."""
        return self._scaled(self.attn.project(read, train), "ls1", train)

    def feed_forward(self, tokens: Tokens, train: bool) -> Array:
        """The MLP branch (B, P + n, D), still to be added to the tokens."""
        branch = self.mlp(_masked(self.norm2(tokens.x), tokens.input_mask), train)
        return self._scaled(branch, "ls2", train)

    def _scaled(self, branch: Array, scale: str, train: bool) -> Array:
        if self.init_values is not None:
            branch = getattr(self, scale)(branch)
        branch = self.stochastic_depth(branch, train)
        return branch if self.residual_scale == 1.0 else branch / self.residual_scale


class RematBlock(Block):
    """The same layer and parameters; activations inside a branch are recomputed in the backward pass, not stored."""

    def attend(self, tokens: Tokens, needs: Sequence[str], train: bool) -> tuple[Array, dict[str, Array]]:
        return nn.remat(lambda block, tokens: Block.attend(block, tokens, needs, train))(self, tokens)

    def feed_forward(self, tokens: Tokens, train: bool) -> Array:
        return nn.remat(lambda block, tokens: Block.feed_forward(block, tokens, train))(self, tokens)


def _masked(y: Array, mask: Array | None) -> Array:
    return y if mask is None else y * mask[..., None].astype(y.dtype)
