"""The value that travels through the encoder, and what comes out beside the logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.struct
import jax.numpy as jnp
from jax import Array

from slimvit_jax.errors import SlimError
from slimvit_jax.ops import select


class Tokens(flax.struct.PyTreeNode):
    """Everything that goes from layer to layer.

    Attributes:
      x: (B, P + n, D): P prefix tokens (class, distillation, registers), then the n patch tokens held now.
      origin: (B, n) int32, the raster index of each patch token; -1 for a made-up one (fused, merged).
      log_weight: (B, P + n) float32 added to the attention logits of each key, or None for none.
      policy: (B, P + n) float32 that multiplies the exponentials instead, every token always seeing itself; for hard
        zeros that must keep a finite gradient. None for none.
      size: (B, P + n) float32, how many tokens each stands for, where tokens took others in; its logarithm is added to
        the attention logits of each key beside `log_weight`. None where every token stands for itself.
      input_mask: (B, P + n) float32 that multiplies the normalised input of both branches, or None for none.
      image_mask: (B,), 0 for images that only fill up a training batch, for batch norms; None where all count.
      places: (N, 2) float32 coordinates of the grid's patches, where the layers turn queries and keys by them (rotary
        positions); else None.
      position: (B, n, 2) float32 coordinates of the patch tokens; None: those of their raster index.
      memory: what a method carries from layer to layer.
      taps: named outputs for losses and pictures.
      kept: raster indices (B, n) after every reduction so far.
      prefix: P.
    """

    x: Array
    origin: Array
    log_weight: Array | None = None
    policy: Array | None = None
    size: Array | None = None
    input_mask: Array | None = None
    image_mask: Array | None = None
    places: Array | None = None
    position: Array | None = None
    memory: dict[str, Any] = flax.struct.field(default_factory=dict)
    taps: dict[str, Any] = flax.struct.field(default_factory=dict)
    kept: tuple[Array, ...] = ()
    prefix: int = flax.struct.field(pytree_node=False, default=1)

    @classmethod
    def of(cls, x: Array, prefix: int, **more: Any) -> Tokens:
        """(B, P + N, D), all N patches of a grid in raster order behind P prefix tokens."""
        shape = (x.shape[0], x.shape[1] - prefix)
        return cls(x=x, origin=jnp.broadcast_to(jnp.arange(shape[1], dtype=jnp.int32), shape), prefix=prefix, **more)

    @property
    def n(self) -> int:
        """Patch tokens held now."""
        return self.x.shape[1] - self.prefix

    @property
    def patches(self) -> Array:
        """(B, n, D)."""
        return self.x[:, self.prefix :]

    @property
    def head(self) -> Array:
        """(B, P, D), the prefix tokens."""
        return self.x[:, : self.prefix]

    @property
    def key_log_weight(self) -> Array | None:
        """(B, P + n) float32 that the attention logits of each key get in all, or None for nothing."""
        if self.size is None:
            return self.log_weight
        log_size = jnp.log(self.size)
        return log_size if self.log_weight is None else self.log_weight + log_size

    @property
    def patch_sizes(self) -> Array:
        """(B, n) float32, how many patches each patch token stands for."""
        return jnp.ones(self.origin.shape, jnp.float32) if self.size is None else self.size[:, self.prefix :]

    @property
    def positions(self) -> Array | None:
        """(B, n, 2) float32 coordinates, None without rotary positions; made-up tokens are in the middle of the grid.

        That is where tokens are of which a method says nothing: those that average others should say where they are,
        `with_patches(..., position=tokens.placed(...))`.
        """
        if self.places is None or self.position is not None:
            if self.position is not None and self.position.shape[1] != self.n:
                raise SlimError(
                    f"{self.n} patch tokens with {self.position.shape[1]} positions: say where new ones are"
                )
            return self.position
        own = self.places[jnp.maximum(self.origin, 0)]
        return jnp.where(self.origin[..., None] >= 0, own, self.places.mean(axis=0))

    def placed(self, combine: Callable[[Array], Array]) -> Array | None:
        """Where the tokens are that `combine` makes of these, (B, n, 2) to (B, k, 2); None without rotary positions."""
        positions = self.positions
        return None if positions is None else combine(positions)

    def add(self, branch: Array) -> Tokens:
        """The residual connection."""
        return self.replace(x=self.x + branch)

    def with_patches(self, patches: Array, origin: Array | None = None, position: Array | None = None) -> Tokens:
        """Other patch tokens (B, k, D) behind the same prefix; without `origin` they count as made up.

        `position`: their coordinates (B, k, 2), see `placed`; by default those of their origin, or, where the origin
        stays what it is, the position too.
        """
        if position is None and origin is self.origin:
            position = self.position
        if origin is None:
            origin = jnp.full(patches.shape[:2], -1, jnp.int32)
        x = jnp.concatenate([self.head, patches.astype(self.x.dtype)], axis=1)
        return self.replace(x=x, origin=origin, position=position)

    def take(self, index: Array) -> Tokens:
        """Only the patch tokens `index` (B, k), in that order, in every per-token array."""
        cut = lambda a: jnp.concatenate([a[:, : self.prefix], select.gather(a[:, self.prefix :], index)], axis=1)
        position = None if self.position is None else select.gather(self.position, index)
        return self._map(cut, select.gather(self.origin, index), position)

    def first(self, k: int) -> Tokens:
        """Only the first `k` patch tokens: a plain slice."""
        position = None if self.position is None else self.position[:, :k]
        return self._map(lambda a: a[:, : self.prefix + k], self.origin[:, :k], position)

    def _map(self, cut: Callable[[Array], Array], origin: Array, position: Array | None) -> Tokens:
        optional = {
            name: cut(value)
            for name in ("log_weight", "policy", "size", "input_mask")
            if (value := getattr(self, name)) is not None
        }
        return self.replace(x=cut(self.x), origin=origin, position=position, **optional)

    def per_token(self, patch_values: Array, prefix_value: float) -> Array:
        """(B, n) values of the patches with `prefix_value` for the prefix tokens in front: (B, P + n)."""
        front = jnp.full((patch_values.shape[0], self.prefix), prefix_value, patch_values.dtype)
        return jnp.concatenate([front, patch_values], axis=1)

    def remember(self, **values: Any) -> Tokens:
        """Carry these to later layers."""
        return self.replace(memory={**self.memory, **values})

    def tap(self, name: str, value: Any) -> Tokens:
        """Append `value` to the named outputs `taps[name]` (a tuple)."""
        return self.replace(taps={**self.taps, name: (*self.taps.get(name, ()), value)})


class Aux(flax.struct.PyTreeNode):
    """What a model returns beside its logits, when asked with `return_aux=True`.

    Attributes:
      token_counts: patch tokens each layer takes in; static ints.
      kept: original raster indices (B, n) in the order held, one array per reduction; None for merging methods.
      scores: (B, N) in raster order where the method has them (the lives, for life regression), else None.
      features: (B, P + n, D) tokens after the final norm.
      grid: (B, N, D) features of every patch in raster order, see `grid_features`; None where `features` has them.
      layer_grids: the same after each recorded layer, by 1-based layer.
      taps: further named outputs: "head_logits" and "dist_logits" of a model with two heads, "tokens" when asked with
        `record_tokens=True`, and what the method adds.
    """

    token_counts: tuple[int, ...] = flax.struct.field(pytree_node=False)
    kept: tuple[Array, ...] | None
    scores: Array | None
    features: Array
    taps: dict[str, Any] = flax.struct.field(default_factory=dict)
    grid: Array | None = None
    layer_grids: dict[int, Array] = flax.struct.field(default_factory=dict)
