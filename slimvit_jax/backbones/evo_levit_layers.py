"""The layers of Evo-LeViT: LeViT's, with a class token and patches that wait while others are computed."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from slimvit_jax.backbones.levit_layers import LevitAttention, LevitBlock, LevitStage, subsample
from slimvit_jax.layers import truncated
from slimvit_jax.ops import select
from slimvit_jax.ops.attention import attention, class_attention
from slimvit_jax.ops.evolution import evolve, representative_token

Array = jax.Array
#: Per run: the blocks of the stage (from 0) that evolve together, and the patches they keep.
Runs = tuple[tuple[tuple[int, ...], int], ...]


@flax.struct.dataclass
class Evolving:
    """What goes from layer to layer.

    Attributes:
      x: (B, 1 + n, D), the class token and all n patches of the grid.
      scores: (B, n) float32, the global class attention in the order of the patches; None before the first layer.
      origin: (B, n) int32, each patch's raster index in the first grid.
      chosen: per selection, the scores before it and the order after it.
    """

    x: Array
    scores: Any
    origin: Array
    chosen: tuple[tuple[Array, Array], ...] = ()


class EvoAttention(LevitAttention):
    """Without biases: positions are added to the tokens; and the class token's attention to the patches is shown."""

    prefix: ClassVar[int] = 1

    def setup_positions(self) -> None:
        self.learn_tradeoff = self.param("learn_tradeoff", nn.initializers.zeros, (1,), jnp.float32)
        if self.layer.down:
            self.poss = self.param("poss", truncated, (1, 1 + self.layer.tokens, self.layer.in_dim), jnp.float32)

    def ranked(self, x: Array, train: bool, mask: Array | None = None) -> tuple[Array, Array, Array]:
        """(B, 1 + n, in_dim) to the branch (B, 1 + left, dim), the mean row (B, n), and alpha of this layer."""
        if self.layer.down:
            x = x + self.poss.astype(x.dtype)
        query, key, value = self.queries_keys_values(x, train, mask)
        out = attention(query, key, value, backend="xla")
        row = class_attention(query[:, :1], key).mean(axis=1)[:, 1:]
        return (
            self.proj(out.reshape(*out.shape[:2], out.shape[2] * out.shape[3]), train, mask),
            row,
            nn.sigmoid(self.learn_tradeoff[0]),
        )


class EvoBlock(LevitBlock):
    """One layer, with what the selection and the waiting patches need of it."""

    attention_class: ClassVar[type[LevitAttention]] = EvoAttention

    def ranked(self, x: Array, train: bool, mask: Array | None = None) -> tuple[Array, Array, Array, Array]:
        """The tokens, the class token's attention, alpha, and what both branches added to the last token."""
        attend = self.attn_downsample if self.layer.down else self.attn
        branch, row, alpha = attend.ranked(x, train, mask)
        if self.layer.down:
            moved, x = jnp.zeros_like(branch[:, -1:]), branch
        else:
            branch = self.stochastic_depth(branch, train)
            moved, x = branch[:, -1:], x + branch
        branch = self.stochastic_depth(self.mlp(x, train, mask), train)
        return x + branch, row, alpha, moved + branch[:, -1:]


class EvoStage(LevitStage):
    """The layers of one grid.

    Attributes:
      runs: see `Runs`; the blocks before the first run are dense.
      learned: alpha of every layer is learned; else 0.5.
    """

    runs: Runs = ()
    learned: bool = True
    block_class: ClassVar[type[LevitBlock]] = EvoBlock

    def run(self, state: Evolving, train: bool, mask: Array | None = None) -> Evolving:
        """The state after the stage; its patches may be in another order."""
        if self.layers[0].down:
            state = self._subsample(state, train, mask)
        first = self.runs[0][0][0] if self.runs else len(self.blocks)
        for block in self.blocks[:first]:
            x, row, alpha, _ = block.ranked(state.x, train, mask)
            scores = row if state.scores is None else evolve(state.scores, row, self._alpha(alpha))
            state = dataclasses.replace(state, x=x, scores=scores)
        for members, kept in self.runs:
            state = self._slow_fast([self.blocks[i] for i in members], kept, state, train, mask)
        return state

    def _alpha(self, alpha: Array) -> Any:
        return alpha if self.learned else 0.5

    def _subsample(self, state: Evolving, train: bool, mask: Array | None = None) -> Evolving:
        """The grid is restored, and its scores and indices follow the patches to the smaller one."""
        grid, total = self.layers[0].grid, state.scores.sum(axis=1, keepdims=True)
        raster = lambda values: select.raster_order(values, state.origin)
        x = jnp.concatenate([state.x[:, :1], raster(state.x[:, 1:])], axis=1)
        x, row, alpha, _ = self.downsample.ranked(x, train, mask)
        scores = evolve(subsample(raster(state.scores), grid), subsample(row, grid), self._alpha(alpha))
        scores = scores * (total / scores.sum(axis=1, keepdims=True))
        return dataclasses.replace(state, x=x, scores=scores, origin=subsample(raster(state.origin), grid))

    def _slow_fast(
        self, blocks: list[Any], kept: int, state: Evolving, train: bool, mask: Array | None = None
    ) -> Evolving:
        """The best patches and a representative of the others go through the blocks; the others move with it."""
        order = select.top(state.scores, state.scores.shape[1])
        chosen = (state.scores, select.gather(state.origin, order))
        patches, scores = select.gather(state.x[:, 1:], order), select.gather(state.scores, order)
        waiting, slow = patches[:, kept:], scores[:, :kept]
        mean = representative_token(waiting, scores[:, kept:]).astype(patches.dtype)
        x = jnp.concatenate([state.x[:, :1], patches[:, :kept], mean], axis=1)
        for block in blocks:
            x, row, alpha, moved = block.ranked(x, train, mask)
            slow = evolve(slow, row[:, :kept], self._alpha(alpha))
            waiting = waiting + moved
        return Evolving(
            x=jnp.concatenate([x[:, :-1], waiting], axis=1),
            scores=jnp.concatenate([slow, scores[:, kept:]], axis=1),
            origin=chosen[1],
            chosen=(*state.chosen, chosen),
        )
