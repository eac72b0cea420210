"""The one encoder loop. It knows no method by name: a method is what its hooks do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jax import Array

from slimvit_jax import fresh
from slimvit_jax.block import Block
from slimvit_jax.errors import SlimError
from slimvit_jax.grid import Trail
from slimvit_jax.plan import check_layers
from slimvit_jax.slimming import Slimming
from slimvit_jax.tokens import Aux, Tokens


class Encoded(NamedTuple):
    """What the layers made of the tokens.

    Attributes:
      tokens: after the last layer, not yet normalised.
      trail: where every patch has gone.
      after: the same two after each of the layers recorded.
    """

    tokens: Tokens
    trail: Trail
    after: dict[int, tuple[Tokens, Trail]]

    def aux(
        self, method: Slimming, normed: Tokens, norm: Callable[[Array], Array], taps: Mapping[str, Any], train: bool
    ) -> Aux:
        """What a model returns beside its logits.

        Args:
          method: that encoded.
          normed: the tokens as `norm` makes them.
          norm: the final one.
          taps: further named outputs.
          train: as in `encode`.
        """
        whole = self.trail.in_raster_order(self.tokens)
        grid = None if whole else self.trail.patches(self.tokens, normed.patches, norm)
        grids = {layer: way.patches(held, norm(held.patches), norm) for layer, (held, way) in self.after.items()}
        if method.bound.depth in grids:  # what `finish` has put together
            grids[method.bound.depth] = normed.patches if grid is None else grid
        return Aux(
            token_counts=(method.train_plan if train else method.plan).token_counts,
            kept=None if method.merges else self.tokens.kept,
            scores=self.tokens.memory.get("scores"),
            features=normed.x,
            taps={**self.tokens.taps, **taps},
            grid=grid,
            layer_grids=grids,
        )


def recorded_layers(record_tokens: bool | Sequence[int], depth: int) -> tuple[int, ...]:
    """The 1-based layers that `record_tokens` means, ascending; a SlimError for one that there is not."""
    if isinstance(record_tokens, bool) or record_tokens is None:
        return tuple(range(1, depth + 1)) if record_tokens else ()
    return tuple(sorted(set(check_layers(record_tokens, depth, "record_tokens"))))


def encode(
    blocks: Sequence[Block], method: Slimming, tokens: Tokens, train: bool, recorded: Sequence[int], tap: bool
) -> Encoded:
    """All layers, unrolled, since token counts differ from layer to layer.

    Args:
      blocks: the layers.
      method: the bound slimming method.
      tokens: as embedded.
      train: training path or inference.
      recorded: the 1-based layers after which tokens and trail are wanted.
      tap: put the patch tokens (B, n, D) after every layer into the tap "tokens".

    Raises:
      SlimError: at trace time, where the tokens held disagree with the method's plan.
    """
    plan = method.train_plan if train else method.plan
    if not train:
        found = fresh.untrained(method.variables.get("params", {}), method.training_only)
        fresh.say(method.method, found)  # outside of jit, where arrays are known
    trail, after = Trail(tokens.origin, method.grid_fill), {}
    tokens = method.start(tokens, train)
    for layer, block in enumerate(blocks, start=1):
        if layer == method.rejoins_at:
            tokens = trail.rejoin(tokens)
        tokens, trail = _noted(method, trail, tokens, method.before_block(tokens, layer, train))
        _check(tokens, plan.attention[layer - 1], method, layer, "attention")
        tokens, probe = method.attend(tokens, layer, block, train)
        if layer in (method.bound.subsamples or ()):
            trail = Trail(tokens.origin, method.grid_fill)  # another grid begins
        tokens, trail = _noted(method, trail, tokens, method.after_attention(tokens, layer, probe, train))
        _check(tokens, plan.mlp[layer - 1], method, layer, "MLP")
        tokens = tokens.add(block.feed_forward(tokens, train))
        tokens, trail = _noted(method, trail, tokens, method.after_block(tokens, layer, train))
        if tap:
            tokens = tokens.tap("tokens", tokens.patches)
        if layer in recorded:
            after[layer] = tokens, trail
    return Encoded(method.finish(tokens, train), trail, after)


def _noted(method: Slimming, trail: Trail, before: Tokens, after: Tokens) -> tuple[Tokens, Trail]:
    """The tokens after a hook, with what they kept, and the trail with what they left."""
    noted = len(after.kept) > len(before.kept)  # by the method itself, where dropping is not all it did
    if not noted and after.n >= before.n:
        return after, trail
    trail = trail.past(before) if method.prunes or not method.merges else trail
    return after if noted else after.replace(kept=(*after.kept, after.origin)), trail


def _check(tokens: Tokens, planned: int, method: Slimming, layer: int, where: str) -> None:
    if tokens.n != planned:  # ints at trace time: free at run time
        raise SlimError(
            f"method {method.method!r} holds {tokens.n} patch tokens at the {where} of layer {layer},"
            f" but its plan says {planned}"
        )
