"""The layers of EVA-02 and DINOv3, under timm's names (EvaAttention, EvaBlock, SwiGLU of timm/models/eva.py)."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from slimvit_jax.block import Attention, Block, RematBlock
from slimvit_jax.layers import LayerNorm, Linear
from slimvit_jax.ops import elementwise


class EvaAttention(Attention):
    """Attention without a bias of the keys, which a softmax would not notice.

    Attributes:
      fused: one projection to queries, keys and values, else three.
      inner_norm: normalise what the heads read, before the output projection.
    """

    fused: bool = True
    inner_norm: bool = False

    def setup(self) -> None:
        linear = lambda bias: Linear(self.dim, use_bias=bias, dtype=self.dtype)
        if self.fused:
            self.qkv = Linear(3 * self.dim, use_bias=False, dtype=self.dtype)
            if self.qkv_bias:
                self.q_bias = self.param("q_bias", nn.initializers.zeros, (self.dim,))
                self.v_bias = self.param("v_bias", nn.initializers.zeros, (self.dim,))
        else:
            self.q_proj, self.k_proj, self.v_proj = linear(self.qkv_bias), linear(False), linear(self.qkv_bias)
        if self.qk_norm:
            self.q_norm, self.k_norm = LayerNorm(self.eps, self.dtype), LayerNorm(self.eps, self.dtype)
        if self.inner_norm:
            self.norm = LayerNorm(self.eps, self.dtype)
        self.proj = Linear(self.dim, dtype=self.dtype)
        self.dropout = nn.Dropout(self.proj_drop)

    def heads(self, y: Array) -> tuple[Array, Array, Array]:
        if not self.fused:
            return self.part(y, 0), self.part(y, 1), self.part(y, 2)
        query, key, value = jnp.split(self.qkv(y), 3, axis=-1)
        return self._biased(query, 0), self._biased(key, 1), self._biased(value, 2)

    def part(self, y: Array, part: int) -> Array:
        if self.fused:
            return self._biased(self.qkv(y, slice(part * self.dim, (part + 1) * self.dim)), part)
        return self._biased((self.q_proj, self.k_proj, self.v_proj)[part](y), part)

    def _biased(self, x: Array, part: int) -> Array:
        """(B, M, D) to (B, M, H, D / H), with the bias of a fused projection, which keys have none of."""
        if self.fused and self.qkv_bias and part != 1:
            x = x + (self.q_bias if part == 0 else self.v_bias).astype(x.dtype)
        return x.reshape(*x.shape[:2], self.num_heads, self.dim // self.num_heads)

    def project(self, out: Array, train: bool) -> Array:
        out = out.reshape(*out.shape[:2], self.dim)
        return super().project(self.norm(out) if self.inner_norm else out, train)


class SwiGLU(nn.Module):
    """silu(W_g y) * (W_x y), a norm, linear; unpacked, as timm has it where there is a norm.

    Attributes:
      hidden: width behind the gate.
      norm_inside: whether there is the norm.
    """

    hidden: int
    dim: int
    norm_inside: bool
    drop: float = 0.0
    eps: float = 1e-6
    dtype: Any = jnp.float32

    def setup(self) -> None:
        self.fc1_g, self.fc1_x = Linear(self.hidden, dtype=self.dtype), Linear(self.hidden, dtype=self.dtype)
        if self.norm_inside:
            self.norm = LayerNorm(self.eps, self.dtype)
        self.fc2 = Linear(self.dim, dtype=self.dtype)
        self.dropout = nn.Dropout(self.drop)

    def __call__(self, y: Array, train: bool) -> Array:
        hidden = self.dropout(elementwise.silu(self.fc1_g(y)) * self.fc1_x(y), deterministic=not train)
        hidden = self.norm(hidden) if self.norm_inside else hidden
        return self.dropout(self.fc2(hidden), deterministic=not train)


class EvaBlock(Block):
    """A pre-norm layer whose gains are its own parameters gamma_1 and gamma_2.

    Attributes:
      qkv_fused, scale_attn_inner: see `EvaAttention`.
      scale_mlp: a norm inside a gated MLP, which is then unpacked.
      swiglu_align_to: the width of a gated MLP is rounded up to a multiple of it, and it is unpacked; 0 for neither.
    """

    qkv_fused: bool = True
    scale_attn_inner: bool = False
    scale_mlp: bool = False
    swiglu_align_to: int = 0

    def setup(self) -> None:
        super().setup()
        if self.init_values is not None:
            gain = nn.initializers.constant(self.init_values)
            self.gamma_1 = self.param("gamma_1", gain, (self.dim,))
            self.gamma_2 = self.param("gamma_2", gain, (self.dim,))

    @property
    def hidden(self) -> int:
        width = int(self.dim * self.mlp_ratio)
        return width + (-width % self.swiglu_align_to if self.swiglu_align_to else 0)

    def attention(self, kind: type[Attention] = EvaAttention, **more: Any) -> nn.Module:
        return super().attention(kind, fused=self.qkv_fused, inner_norm=self.scale_attn_inner, **more)

    def feed_forward_module(self) -> nn.Module:
        if self.gated and (self.scale_mlp or self.swiglu_align_to):
            return SwiGLU(self.hidden, self.dim, self.scale_mlp, self.proj_drop, self.eps, self.dtype)
        return super().feed_forward_module()

    def layer_scales(self) -> None:
        """None of the modules ls1 and ls2."""

    def gain(self, branch: Array, scale: str) -> Array:
        return branch * (self.gamma_1 if scale == "ls1" else self.gamma_2).astype(branch.dtype)


class RematEvaBlock(EvaBlock, RematBlock):
    """The same layer and parameters; activations inside a branch are recomputed in the backward pass, not stored."""
