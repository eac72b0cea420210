"""Other orders than coverage's, for the question why merging in every layer stays nearer to the dense model at 0.5.

Experiments of `benchmarks.fidelity` on trained weights, no methods of the library: what they add is not counted in
`slim.flops`, and they are for inference alone.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from slimvit_jax.methods.life_regression import LifeRegression
from slimvit_jax.ops import coverage
from slimvit_jax.ops.select import gather


class Remade(LifeRegression):
    """Life regression by coverage that orders the survivors anew, one by one, wherever some die."""

    def before_block(self, tokens: Any, layer: int, train: bool) -> Any:
        dies = layer > self.base + 1 and self.counts[layer - 1] < self.counts[layer - 2]
        if not (dies and self._really_drops(train)):
            return super().before_block(tokens, layer, train)
        patches = tokens.patches.astype(jnp.float32)
        ranks = coverage.greedy_ranks(patches, coverage.centrality(patches).argmax(axis=1))
        return self._leave(tokens, self.counts[layer - 1], train, coverage.standard_ranks(ranks))


class RedundantFirst(LifeRegression):
    """Life regression by elimination: whoever costs least to merge into its most similar survivor dies first."""

    def _ranks(self, tokens: Any) -> Array:
        return elimination_ranks(tokens.patches)


def elimination_ranks(patches: Array) -> Array:
    """(B, N) int32 ranks of (B, N, D), the last for the patch with the least size * (1 - cosine to the nearest other).

    The nearest takes its size over, and so on with those that are left.
    """
    cosines = coverage.similarities(patches)
    batch, n = cosines.shape[:2]
    places = jnp.arange(n)

    def step(done: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
        cosines, size, ranks = state  # a column of the dead is -inf
        cost = jnp.where(ranks < 0, size * (1 - cosines.max(axis=2)), jnp.inf)
        dead = cost.argmin(axis=1)[:, None]
        host = gather(cosines, dead)[:, 0].argmax(axis=1)[:, None]
        size = jnp.where(places == host, size + gather(size, dead), size)
        ranks = jnp.where(places == dead, n - 1 - done, ranks)
        return jnp.where((places == dead)[:, None, :], -jnp.inf, cosines), size, ranks

    alone = jnp.where(jnp.eye(n, dtype=bool), -jnp.inf, cosines)
    start = (alone, jnp.ones((batch, n)), jnp.full((batch, n), -1, jnp.int32))
    return jnp.maximum(jax.lax.fori_loop(0, n - 1, step, start)[2], 0)
