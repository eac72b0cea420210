"""The first part of a vision transformer: an image becomes the tokens of the first layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from slimvit_jax.layers import LayerNorm, truncated
from slimvit_jax.ops.rotary import Rotary
from slimvit_jax.tokens import Tokens


class Embedding(nn.Module):
    """Prefix tokens and patches, with learned positions.

    Attributes:
      patches: makes the module "patch_embed", which takes (images, train, mask) and gives (B, N, D); it has `flops`.
      dim: D.
      prefix: names and numbers of the prefix tokens, in their order.
      positions: tokens that the learned positions cover; 0 for none at all.
      position_name: of that parameter.
      on_patches: they are of the patches only.
      drop: dropout.
      pre_norm: a norm in front of the first layer.
      eps: of that norm.
      rotary: whose coordinates the tokens carry; None for none.
    """

    patches: Callable[[], nn.Module]
    dim: int
    prefix: tuple[tuple[str, int], ...] = ()
    positions: int = 0
    position_name: str = "pos_embed"
    on_patches: bool = False
    drop: float = 0.0
    pre_norm: bool = False
    eps: float = 1e-6
    dtype: Any = jnp.float32
    rotary: Rotary | None = None

    def setup(self) -> None:
        self.patch_embed = self.patches()
        start = lambda name: truncated if name == "dist_token" else nn.initializers.normal(1e-6)
        self.front = [self.param(name, start(name), (1, n, self.dim), jnp.float32) for name, n in self.prefix]
        if self.positions:
            self.pos_embed = self.param(self.position_name, truncated, (1, self.positions, self.dim), jnp.float32)
        self.pos_drop = nn.Dropout(self.drop)
        if self.pre_norm:
            self.norm_pre = LayerNorm(self.eps, self.dtype)

    def __call__(self, images: Array, train: bool, mask: Array | None = None) -> Tokens:
        """The tokens of (B, H, W, C) images; `mask` (B,), 0 for images that do not count."""
        patches, taps = self.patch_tokens(images, train, mask)
        front = [jnp.broadcast_to(p.astype(patches.dtype), (patches.shape[0], *p.shape[1:])) for p in self.front]
        position = self.position().astype(patches.dtype) if self.positions else 0.0
        if self.on_patches:
            x = jnp.concatenate([*front, patches + position], axis=1)
        else:
            x = jnp.concatenate([*front, patches], axis=1) + position
        x = self.pos_drop(x, deterministic=not train)
        if self.pre_norm:
            x = self.norm_pre(x)
        places = None if self.rotary is None else jnp.asarray(self.rotary.coordinates())
        return Tokens.of(x, sum(n for _, n in self.prefix), taps=taps, places=places, image_mask=mask)

    @nn.nowrap
    def flops(self, img_size: tuple[int, int], in_chans: int) -> int:
        """Multiply-adds of one image."""
        flops: int = self.patches().flops(img_size, in_chans)  # type: ignore[attr-defined]
        return flops

    def patch_tokens(self, images: Array, train: bool, mask: Array | None) -> tuple[Array, dict[str, Array]]:
        """(B, N, D) tokens without positions, and taps."""
        return self.patch_embed(images, train, mask), {}

    def position(self) -> Array:
        """(1, P + N or N, D), what is added to the tokens."""
        return self.pos_embed
