"""The one encoder loop. It knows no method by name: a method is what its hooks do."""

from __future__ import annotations

from collections.abc import Sequence

from slimvit_jax import fresh
from slimvit_jax.errors import SlimError
from slimvit_jax.layers import Block
from slimvit_jax.slimming import Slimming
from slimvit_jax.tokens import Tokens


def encode(blocks: Sequence[Block], method: Slimming, tokens: Tokens, train: bool, record_tokens: bool) -> Tokens:
    """All layers, unrolled, since token counts differ from layer to layer.

    Args:
      blocks: the layers.
      method: the bound slimming method.
      tokens: as embedded.
      train: training path or inference.
      record_tokens: tap the patch tokens (B, n, D) after every layer as "tokens".

    Returns:
      The tokens after the last layer, not yet normalised.

    Raises:
      SlimError: at trace time, where the tokens held disagree with the method's plan.
    """
    plan = method.train_plan if train else method.plan
    if not train:
        found = fresh.untrained(method.variables.get("params", {}), method.training_only)
        fresh.say(method.method, found)  # outside of jit, where arrays are known
    tokens = method.start(tokens, train)
    for layer, block in enumerate(blocks, start=1):
        tokens = _note_drop(tokens, method.before_block(tokens, layer, train))
        _check(tokens, plan.attention[layer - 1], method, layer, "attention")
        tokens, probe = method.attend(tokens, layer, block, train)
        tokens = _note_drop(tokens, method.after_attention(tokens, layer, probe, train))
        _check(tokens, plan.mlp[layer - 1], method, layer, "MLP")
        tokens = tokens.add(block.feed_forward(tokens, train))
        tokens = _note_drop(tokens, method.after_block(tokens, layer, train))
        if record_tokens:
            tokens = tokens.tap("tokens", tokens.patches)
    return method.finish(tokens, train)


def _note_drop(before: Tokens, after: Tokens) -> Tokens:
    noted = len(after.kept) > len(before.kept)  # by the method itself, where dropping is not all it did
    return after if noted or after.n >= before.n else after.replace(kept=(*after.kept, after.origin))


def _check(tokens: Tokens, planned: int, method: Slimming, layer: int, where: str) -> None:
    if tokens.n != planned:  # ints at trace time: free at run time
        raise SlimError(
            f"method {method.method!r} holds {tokens.n} patch tokens at the {where} of layer {layer},"
            f" but its plan says {planned}"
        )
