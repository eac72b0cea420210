"""DTEM (Lee and Hong 2024, "Learning to Merge Tokens via Decoupled Embedding for Efficient Vision Transformers")."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from slimvit_jax.arrays import as_numpy
from slimvit_jax.facts import Facts
from slimvit_jax.layers import Linear
from slimvit_jax.methods.tome import ToMe
from slimvit_jax.ops import elementwise, soft_merge
from slimvit_jax.options import Count, Positive
from slimvit_jax.slimming import Probe
from slimvit_jax.tokens import Tokens


class DTEM(ToMe, kw_only=True):
    """ToMe with a metric of its own: a linear map of what the attention reads, learned by merging softly.

        metric = W LN1(x) + b, in every layer; then ToMe: bipartite matching, size-weighted mean, proportional attention
        training: nothing leaves. The r tokens of A are chosen by r rounds of a softmax over the k2 best edges of each
                  token (cosine / tau1, temperature tau2); a chosen token gives the chosen share of its size and of
                  itself to B. The n - r tokens of largest size take part in the next layer's merging; all take part in
                  attention, weighted by their size.

    Official: dtem/dtem.py of movinghoon/DTEM (patch_deit). No gradient flows from the metric into the tokens, as
    released, so that it alone learns to merge where the backbone is frozen.

    Deviations: as of ToMe (protected registers, zero vectors); an r above half of the patches is refused, not clamped,
    at the first layer; a layer that merges nothing does not compute its metric. The state dict is the release's:
    blocks.i.attn.qkv.{qkv_layer,metric_layer} and the fused copy of both in attn.qkv, which training there leaves
    stale: it is not read, and written anew.
    Cost: on top of ToMe's, (P + n) D C for the metric, C = feat_dim also in place of d in the similarities.

    Attributes:
      r, keep_rate, prop_attn, track_source: as of ToMe.
      feat_dim: C; None: the width of a head, twice that from D = 1024 on.
      k2: edges per token that training looks at.
      tau1, tau2: temperatures of training.
    """

    method = "dtem"
    untrained: ClassVar[tuple[Mapping[str, Any], ...]] = ()
    facts = Facts(
        source="Lee and Hong 2024, movinghoon/DTEM",
        cost="ToMe's, and (P + n) D d per layer",
        learns="a map to d channels per layer",
        training="merges softly",
        grid="merged",
        where="inside, every layer",
    )
    trains_on_all = True

    feat_dim: Count | None = None
    k2: Count = 3
    tau1: Positive = 0.1
    tau2: Positive = 0.1

    @property
    def width(self) -> int:
        """C, the channels of the metric."""
        return self.feat_dim or super().width * (1 if self.bound.dim < 1024 else 2)

    def extra_flops(self) -> dict[int, int]:
        costs, embedding = super().extra_flops(), self.bound.dim * self.width
        return {layer: costs[layer] + (n + self.bound.prefix_tokens) * embedding for layer, n, _ in self.merging}

    def setup(self) -> None:
        self.metric_layer = [Linear(self.width) for _ in range(self.bound.depth)]

    def start(self, tokens: Tokens, train: bool) -> Tokens:
        tokens = super().start(tokens, train)
        if train:  # nobody becomes a part of another one for good
            tokens = tokens.replace(memory={k: v for k, v in tokens.memory.items() if k != "owner"})
        return tokens

    def needs(self, layer: int, train: bool) -> tuple[str, ...]:
        return ("inputs",) if self.merged[layer - 1] or self.is_initializing() else ()

    def metric(self, probe: Probe, layer: int) -> Array:
        return self.metric_layer[layer - 1](jax.lax.stop_gradient(probe["inputs"]))

    def after_attention(self, tokens: Tokens, layer: int, probe: Probe, train: bool) -> Tokens:
        if self.is_initializing() and not self.merged[layer - 1]:
            self.metric(probe, layer)  # its parameters belong to the model, whatever r is
        if not train:
            return super().after_attention(tokens, layer, probe, train)
        r, n, prefix = self.merged[layer - 1], self.plan.attention[layer - 1], tokens.prefix
        if not r:
            return tokens
        unit = elementwise.unit(self.metric(probe, layer)[:, prefix : prefix + n])
        similarity = jnp.einsum("bac,bmc->bam", unit[:, ::2], unit[:, 1::2])
        share = soft_merge.soft_top_edges(similarity, r, self.k2, self.tau1, self.tau2)
        size, patches = tokens.memory["size"], tokens.patches
        held = size[:, prefix : prefix + n]
        merged, sizes, order = soft_merge.soft_merge(patches[:, :n], held, share)
        places = jnp.concatenate([jnp.arange(0, n, 2), jnp.arange(1, n, 2)])[order]
        origin = jnp.take_along_axis(tokens.origin[:, :n], places, axis=1)
        origin = jnp.concatenate([origin, tokens.origin[:, n:]], axis=1)
        size = jnp.concatenate([size[:, :prefix], sizes, size[:, prefix + n :]], axis=1)
        with_rest = lambda values, rest: jnp.concatenate([values, rest[:, n:]], axis=1)
        position = tokens.placed(lambda at: with_rest(soft_merge.soft_merge(at[:, :n], held, share)[0], at))
        tokens = tokens.with_patches(with_rest(merged, patches), origin, position).remember(size=size)
        return tokens.replace(log_weight=soft_merge.log_size(size)) if self.prop_attn else tokens

    def from_official(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        ours = dict(state)
        for name in state:
            if match := _OFFICIAL.fullmatch(name):
                layer, module, part = match.groups()
                fused = f"blocks.{layer}.attn.qkv.{part}"
                if module == "qkv_layer":
                    ours[fused] = ours.pop(name)  # in place of the fused copy, which may be stale
                else:
                    ours[f"metric_layer.{layer}.{part}"] = ours.pop(name)
        return ours

    def to_official(self, state: dict[str, Any]) -> dict[str, Any]:
        theirs: dict[str, Any] = {}
        for name, value in state.items():
            if match := _OURS.fullmatch(name):
                layer, part = match[1] or match[2], match[3]
                module = "qkv_layer" if match[1] else "metric_layer"
                theirs[f"blocks.{layer}.attn.qkv.{module}.{part}"] = value
            else:
                theirs[name] = value
        for layer in range(self.bound.depth):
            for part in ("weight", "bias"):
                parts = [f"blocks.{layer}.attn.qkv.{module}.{part}" for module in ("qkv_layer", "metric_layer")]
                if all(name in theirs for name in parts):
                    fused = np.concatenate([as_numpy(name, theirs[name]) for name in parts])
                    theirs[f"blocks.{layer}.attn.qkv.{part}"] = fused
        return theirs


#: The release's names of the two maps, and ours: layer of the first, layer of the second, weight or bias.
_OFFICIAL = re.compile(r"blocks\.(\d+)\.attn\.qkv\.(qkv_layer|metric_layer)\.(weight|bias)")
_OURS = re.compile(r"(?:blocks\.(\d+)\.attn\.qkv|metric_layer\.(\d+))\.(weight|bias)")
