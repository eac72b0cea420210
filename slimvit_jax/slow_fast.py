"""Slow and fast tokens (Evo-ViT): the patches that go on, one token that stands for the others, and their way back."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from slimvit_jax.ops import select
from slimvit_jax.ops.evolution import representative_token, with_representative
from slimvit_jax.tokens import Tokens


def divide(tokens: Tokens, running: Array, order: Array, left: int, representative: bool = True) -> Tokens:
    """The first `left` patches of an order and, behind them, the representative of the others, which wait.

    `tokens.memory` then has "running" of the patches that go on, and what `join` needs.

    Args:
      tokens: of which all patches are ranked.
      running: (B, n) scores of the patches, which weigh those that the representative is the mean of.
      order: (B, n) indices of the patches, the best first.
      left: how many go on.
      representative: whether there is such a token; its index is -1.
    """
    everyone, running = tokens.take(order), select.gather(running, order)
    slow, waiting = everyone.first(left), everyone.patches[:, left:]
    slow = slow.remember(
        running=running[:, :left], waiting=(waiting, everyone.origin[:, left:], running[:, left:]), mean=None
    )
    if not representative:
        return slow
    mean = representative_token(waiting, running[:, left:]).astype(tokens.x.dtype)
    position = everyone.placed(lambda places: with_representative(places, running, left))
    origin = jnp.pad(slow.origin, ((0, 0), (0, 1)), constant_values=-1)
    patches = jnp.concatenate([slow.patches, mean], axis=1)
    return slow.with_patches(patches, origin, position).remember(mean=mean)


def join(tokens: Tokens) -> Tokens:
    """All patches again, those that waited at the end, moved by what the layers added to their representative.

    The weights of the mean stay as they were at the selection, so adding once equals adding after every layer.
    """
    memory = dict(tokens.memory)
    (waiting, origin, scores), mean = memory.pop("waiting"), memory.pop("mean")
    if mean is not None:
        moved = tokens.patches[:, -1:].astype(jnp.float32) - mean.astype(jnp.float32)
        waiting = (waiting.astype(jnp.float32) + moved).astype(waiting.dtype)
        tokens = tokens.first(tokens.n - 1)
    memory["running"] = jnp.concatenate([memory["running"], scores], axis=1)
    patches = jnp.concatenate([tokens.patches, waiting], axis=1)
    return tokens.with_patches(patches, jnp.concatenate([tokens.origin, origin], axis=1)).replace(memory=memory)
