"""Evo-ViT's slow-fast evolution within the stages of LeViT, as hooks: the method that Evo-LeViT has built in."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jax import Array

from slimvit_jax import losses as loss_functions
from slimvit_jax.backbones.levit_layers import subsample
from slimvit_jax.losses import Targets
from slimvit_jax.ops import select
from slimvit_jax.ops.evolution import evolve
from slimvit_jax.plan import Geometry, Plan
from slimvit_jax.slimming import Probe, Slimming
from slimvit_jax.slow_fast import divide, join
from slimvit_jax.tokens import Aux, Tokens


@dataclasses.dataclass(frozen=True)
class EvolvingGeometry(Geometry):
    """A pyramid whose stages select.

    Attributes:
      runs: (first layer, last layer, patches kept) of the layers that evolve together; 1-based.
      learned: the tradeoff of every layer is learned; else 0.5.
    """

    runs: tuple[tuple[int, int, int], ...] = ()
    learned: bool = True


class Evolution(Slimming, kw_only=True):
    """Selection and losses of `EvoLeViT`, which has the formulas.

    Losses: cross-entropy of the pooled heads and of the class token's, each the mean over its two heads where
    distilled. With a labeller only the first head of each learns the true labels, and the others its most probable
    class (`Backbone.losses`); the release weighs the three by 1/4, 1/4 and 1/2 (levit/losses_levit.py).
    """

    method = "evo_levit"
    needs_class_token = True
    keep_all_is_dense = False
    runs_on_pyramids = True
    loss_weights: ClassVar[Mapping[str, float]] = {"classification": 1.0, "class_token": 1.0}
    training_only = (r"head_cls(_dist)?/.*",)

    @property
    def evolving(self) -> EvolvingGeometry:
        """The geometry; there is no other that this method is bound to."""
        assert isinstance(self.bound, EvolvingGeometry)
        return self.bound

    @property
    def plan(self) -> Plan:
        held = {layer: k + 1 for first, last, k in self.evolving.runs for layer in range(first, last + 1)}
        dense = self.bound.dense_plan
        count = lambda counts: tuple(held.get(layer, n) for layer, n in enumerate(counts, start=1))
        return Plan(count(dense.attention), count(dense.mlp))

    def needs(self, layer: int, train: bool) -> tuple[str, ...]:
        return ("class_attention", "tradeoff")

    def before_block(self, tokens: Tokens, layer: int, train: bool) -> Tokens:
        if self._subsamples(layer):
            order = select.argsort(tokens.origin)
            return tokens.take(order).remember(running=select.gather(tokens.memory["running"], order))
        left = next((k for first, _, k in self.evolving.runs if first == layer), None)
        if left is None:
            return tokens
        running = tokens.memory["running"]
        order = select.top(running, tokens.n)
        raster = jnp.broadcast_to(self._raster(layer), tokens.origin.shape)
        indices = select.gather(raster, select.gather(tokens.origin, order))
        tokens = tokens.tap("class_attention", running).tap("order", indices)
        return divide(tokens, running, order, left).replace(kept=(*tokens.kept, indices[:, :left]))

    def after_attention(self, tokens: Tokens, layer: int, probe: Probe, train: bool) -> Tokens:
        new, running = probe["class_attention"].mean(axis=1)[:, tokens.prefix :], tokens.memory.get("running")
        if running is None:
            return tokens.remember(running=new)
        alpha = probe["tradeoff"] if self.evolving.learned else 0.5
        if not self._subsamples(layer):
            return tokens.remember(running=evolve(running, new[:, : running.shape[1]], alpha))
        small = lambda scores: subsample(scores, self.bound.grids[layer - 1])
        mixed = evolve(small(running), small(new), alpha)
        return tokens.remember(running=mixed * (running.sum(axis=1, keepdims=True) / mixed.sum(axis=1, keepdims=True)))

    def after_block(self, tokens: Tokens, layer: int, train: bool) -> Tokens:
        return join(tokens) if any(layer == last for _, last, _ in self.evolving.runs) else tokens

    def finish(self, tokens: Tokens, train: bool) -> Tokens:
        return tokens.take(select.argsort(tokens.origin)) if self.evolving.runs else tokens

    def loss_terms(self, logits: Array, aux: Aux, targets: Targets) -> dict[str, Array]:
        names = ("class_logits",) if targets.labeller is not None else ("class_logits", "class_dist_logits")
        heads = [aux.taps[name] for name in names if name in aux.taps]
        token = jnp.stack([loss_functions.cross_entropy(head, targets.labels) for head in heads])
        return {
            "classification": loss_functions.classification(logits, aux.taps, targets),
            "class_token": token.mean(axis=0),
        }

    def _subsamples(self, layer: int) -> bool:
        return layer in (self.bound.subsamples or ())

    def _raster(self, layer: int) -> np.ndarray:
        """(n,) the indices in the first grid of the patches of this layer's grid."""
        index = np.arange(self.bound.num_patches, dtype=np.int32).reshape(self.bound.grid)
        for _ in range(sum(1 for at in self.bound.subsamples or () if at < layer)):
            index = index[::2, ::2]
        return index.reshape(-1)
