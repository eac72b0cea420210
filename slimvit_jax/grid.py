"""Dense features: where every patch of the grid has gone, and its features back on the grid."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array

from slimvit_jax.errors import SlimError
from slimvit_jax.ops import select
from slimvit_jax.ops.squeeze import nearest_host
from slimvit_jax.plan import Geometry, check_layers
from slimvit_jax.tokens import Aux, Tokens


@dataclasses.dataclass(frozen=True)
class Trail:
    """What has become of the patches so far, in one trace of the encoder.

    A patch is in one of the tokens held, or its last features are in `left`. Which token it is in says
    `tokens.memory["owner"]` (B, P + N) where tokens are merged, positions among all tokens held and a negative one for
    those gone; `tokens.memory["shares"]` (B, N, n) where every token has a share of every patch; else `tokens.origin`.
    Nothing is computed before features are asked for.

    Attributes:
      raster: the first `origin`: tokens that still have this one are all patches, in raster order.
      fill: what a patch that is gone has: "last", its own last features; "nearest", those of its host, the survivor it
        was most similar to when it was dropped, by the cosine of the tokens there; "moved", its own last ones plus what
        its host has changed by since. A host that is gone later has what its own host gives it.
      left: the patch tokens (B, n, D) in front of every reduction that may lose some, and the positions (B, N) of the
        patches among them; first to last.
    """

    raster: Array
    fill: str = "last"
    left: tuple[tuple[Array, Array], ...] = ()

    def past(self, before: Tokens) -> Trail:
        """With a reduction behind it, `before` being the tokens in front of that."""
        return dataclasses.replace(self, left=(*self.left, (before.patches, self._places(before))))

    def patches(self, tokens: Tokens, held: Array, norm: Callable[[Array], Array]) -> Array:
        """(B, N, D) features of all patches in raster order: of the token that they are in, or as `fill` says.

        Args:
          tokens: held now, not normalised.
          held: (B, n, D), their features.
          norm: what makes features of tokens.
        """
        if self.in_raster_order(tokens):
            return held
        if "shares" in tokens.memory:
            shares = tokens.memory["shares"].astype(held.dtype)
            return jnp.matmul(shares, held, preferred_element_type=jnp.float32).astype(held.dtype)
        places = self._places(tokens)
        found = select.gather(held, jnp.maximum(places, 0))
        if not self.left:
            return found
        return jnp.where((places >= 0)[..., None], found, norm(self._filled(tokens.patches, places)))

    def rejoin(self, tokens: Tokens) -> Tokens:
        """All patches again, in raster order, those that are gone as `fill` says; weights of any kind end."""
        x = jnp.concatenate([tokens.head, self.patches(tokens, tokens.patches, lambda x: x)], axis=1)
        nothing = dict.fromkeys(("log_weight", "policy", "size", "input_mask"))
        return tokens.replace(x=x, origin=self.raster, position=None, **nothing)

    def in_raster_order(self, tokens: Tokens) -> bool:
        """Whether the tokens held are known to be all patches in raster order."""
        return tokens.origin is self.raster and "owner" not in tokens.memory

    def _places(self, tokens: Tokens) -> Array:
        """(B, N) int32, the position of every patch among the patch tokens held; negative where it is in none."""
        if "owner" in tokens.memory:
            owner: Array = tokens.memory["owner"]
            return owner[:, tokens.prefix :] - tokens.prefix
        batch, count = self.raster.shape
        numbers = jnp.broadcast_to(jnp.arange(tokens.n, dtype=jnp.int32), tokens.origin.shape)
        target = jnp.where(tokens.origin < 0, count, tokens.origin)  # made-up tokens are nobody's
        nowhere = jnp.full((batch, count), -1, jnp.int32)
        return select.put(nowhere, target, numbers)

    def _last(self) -> Array:
        """(B, N, D): what every patch was when it was last there, in front of some reduction."""
        index, offset = jnp.zeros_like(self.raster), 0
        for patches, places in self.left:
            index = jnp.where(places >= 0, places + offset, index)
            offset += patches.shape[1]
        return select.gather(jnp.concatenate([patches for patches, _ in self.left], axis=1), index)

    def _filled(self, patches: Array, places: Array) -> Array:
        """(B, N, D) tokens of all patches in raster order; those at `places` among (B, n, D) `patches` have these."""
        if self.fill == "last":
            return self._last()
        filled, later = select.gather(patches, jnp.maximum(places, 0)), places
        for before, at in reversed(self.left):
            then = select.gather(before, jnp.maximum(at, 0))
            host, _ = nearest_host(then, then, staying=(later >= 0).astype(jnp.float32))
            guess = select.gather(filled, host)
            if self.fill == "moved":
                guess += then - select.gather(then, host)
            filled, later = jnp.where(((at >= 0) & (later < 0))[..., None], guess, filled), at
        return filled


def follow_clusters(tokens: Tokens, clusters: Array) -> Tokens:
    """Remember that the patch tokens become those numbered `clusters` (B, n), 0.. of the new ones."""
    prefix, owner = tokens.prefix, tokens.memory.get("owner")
    if owner is None:
        front = jnp.broadcast_to(jnp.arange(prefix, dtype=jnp.int32), (clusters.shape[0], prefix))
        return tokens.remember(owner=jnp.concatenate([front, clusters + prefix], axis=1))
    patches = select.gather(clusters, owner[:, prefix:] - prefix) + prefix
    return tokens.remember(owner=jnp.concatenate([owner[:, :prefix], patches], axis=1))


def follow_shares(tokens: Tokens, weights: Array) -> Tokens:
    """Remember that new tokens take `weights` (B, m, n) of the patch tokens; of a patch all of them have shares."""
    taken = weights.astype(jnp.float32).swapaxes(1, 2)  # (B, n, m)
    taken = taken / jnp.maximum(taken.sum(axis=2, keepdims=True), jnp.finfo(jnp.float32).tiny)
    before = tokens.memory.get("shares")
    return tokens.remember(shares=taken if before is None else jnp.matmul(before, taken))


def grid_features(model: Any, aux: Aux, layers: Sequence[int] | None = None) -> Array | tuple[Array, ...]:
    """The features of every patch on the grid, whatever the method did: what a dense head reads.

    A patch that was kept has its own token; one that was merged a copy of the token it is part of; one that was dropped
    what the method's `fill` says, its features of the moment it was dropped or what follows from its nearest survivor,
    or those of the end where the method lets it rejoin. Where every token takes a share of every patch (sit, sinkhorn,
    patchmerger) a patch has the mean of the tokens, weighted by the share that each takes of it. All are normalised as
    `aux.features` is, by the model's final norm.

    Args:
      model: from `create_model`.
      aux: of `model.apply(variables, images, return_aux=True)`.
      layers: 1-based, to have the features after each of these layers instead; `apply` needs `record_tokens=True` or
        `record_tokens=layers` then.

    Returns:
      (B, H', W', D), rows and columns of patches; H' and W' are those of `model.geometry.grid`, or of the last stage
      where the backbone subsamples its grid (LeViT). With `layers` a tuple of them.

    Raises:
      SlimError: the layers are none of the model, or were not recorded; these are no model and aux, or of two models.
    """
    if not isinstance(aux, Aux) or not isinstance(getattr(model, "geometry", None), Geometry):
        raise SlimError(
            f"grid_features({type(model).__name__}, {type(aux).__name__}): wanted are a model of create_model and the"
            " aux of model.apply(..., return_aux=True), which gives (logits, aux)"
        )
    if layers is None:
        patches = aux.features[:, model.geometry.prefix_tokens :] if aux.grid is None else aux.grid
        return _on_grid(patches, model.geometry.grids[-1])
    layers = check_layers(layers, model.geometry.depth, "layers")
    missing = tuple(layer for layer in layers if layer not in aux.layer_grids)
    if missing:
        raise SlimError(
            f"grid_features: layers {missing} were not recorded; apply the model with record_tokens={layers}"
        )
    return tuple(_on_grid(aux.layer_grids[layer], model.geometry.grids[layer]) for layer in layers)


def _on_grid(patches: Array, grid: tuple[int, int]) -> Array:
    rows, columns = grid
    if patches.ndim != 3 or patches.shape[1] != rows * columns:
        raise SlimError(f"grid_features: features of shape {patches.shape} are not those of a {rows}x{columns} grid")
    return patches.reshape(patches.shape[0], rows, columns, patches.shape[2])
