"""What the methods that rank patches share."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from slimvit_jax.ops import select
from slimvit_jax.slimming import Probe
from slimvit_jax.tokens import Tokens


def ranking(tokens: Tokens, own: Array) -> Array:
    """(B, n) scores to rank the patch tokens by: the imposed ones where there are any, else the method's `own`.

    Imposed scores (`model.apply(..., scores=)`) belong to patches; a fused token keeps the method's score.
    """
    given = tokens.memory.get("given_scores")
    if given is None:
        return own
    imposed = select.gather(given, jnp.maximum(tokens.origin, 0))
    return jnp.where(tokens.origin >= 0, imposed, own.astype(imposed.dtype))


def noted(tokens: Tokens, scores: Array) -> Tokens:
    """With `scores` (B, n) as `aux.scores`, if they are the first: then the patches still are in raster order."""
    return tokens if "scores" in tokens.memory else tokens.remember(scores=scores)


def class_attention(tokens: Tokens, probe: Probe) -> tuple[Tokens, Array]:
    """(B, n) the patches' class attention, the mean over the heads, and the tokens with it noted and tapped."""
    attention = probe["class_attention"].mean(axis=1)[:, tokens.prefix :]
    return noted(tokens.tap("class_attention", attention), attention), attention
