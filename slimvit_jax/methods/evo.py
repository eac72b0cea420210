"""Evo-ViT (Xu et al. 2022): informative patches take the slow path, one token stands for all the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from jax import Array

from slimvit_jax import losses as loss_functions
from slimvit_jax.errors import SlimError
from slimvit_jax.facts import Facts
from slimvit_jax.layers import LayerNorm, Linear
from slimvit_jax.losses import Targets
from slimvit_jax.methods import evo_names
from slimvit_jax.methods.located import Located
from slimvit_jax.methods.ranking import noted, ranking
from slimvit_jax.ops import select
from slimvit_jax.ops.evolution import evolve
from slimvit_jax.options import Fraction, Share
from slimvit_jax.plan import Geometry, Plan
from slimvit_jax.slimming import Probe
from slimvit_jax.slow_fast import divide, join
from slimvit_jax.tokens import Aux, Tokens


class Evo(Located, kw_only=True):
    """Patches are ranked by a running class attention and re-selected at each stage; none is lost.

        a_1 = sum over heads of the class token's attention to the patches;  a_k = (1 - alpha) a_{k-1} + alpha * new
        slow path:  layers run on prefix + the int(N r) patches of largest a (+ one representative token)
        fast path:  every placeholder += the residuals that the representative received from attention and MLP
        logits = head(norm(mean of all N patches));  training adds head_cls(norm_cls(class token))

    "At layer t" means before layer t: with locations (5, 9) the layers 1-4 are dense, and all N patches are ranked
    before layers 5 and 9, each time after those left out have come back. Only scores of computed patches are updated.
    The pooled head replaces the backbone's own pooling, in its parameters `norm` (or `fc_norm`) and `head`.

    With `representative` (the paper) a placeholder moves by the sum of all the residuals of its stage: the weights stay
    as they were at the selection, so adding once at the stage's end equals adding after every layer. Without it (the
    released deit/evo_deit.py) placeholders wait unchanged. `stage_wise=False` selects anew in front of every layer from
    the first location on, as the release trains its first 200 epochs. Training and inference compute the same.

    Deviations: any depth (12 in the release); tokens come back in raster order at the end; distillation and register
    tokens are prefix tokens and never ranked. The second head of a distilled model reads its token as usual. A float
    tradeoff is alpha from the first location on; before it each layer replaces the score (the release's default list).
    State-dict names are the release's: norms.i, qks.i, vs.i, projs.i beside blocks.i; timm's are read as well.
    Cost: (P + n) D per class row in front of the last selection, (N - n) D per representative token, one token a layer.

    aux.taps: "class_attention", the running scores (B, N) in raster order at each selection; in training also
    "class_logits". aux.scores is the first of the former. aux.kept has -1, in the last place, for the representative.

    Attributes:
      keep_rate: r, a float or one per location; always a share of all N patches.
      locations: 1-based layers in front of which patches are ranked; the first is 2 or later.
      representative: the paper's algorithm; False for the release's.
      tradeoff: alpha, a float or one per layer.
      stage_wise: rank at the locations only.
    """

    method = "evo"
    score_name = "class attention"
    facts = Facts(
        source="Xu et al. 2022, YifanXu74/Evo-ViT",
        cost="(P + n) D per class row, (N - n) D per stage",
        learns="a second head",
        grid="kept",
        where="before",
    )
    needs_class_token = True
    keep_all_is_dense = False  # the head pools the patches
    pools_patches = True
    loss_weights: ClassVar[Mapping[str, float]] = {"classification": 1.0, "class_token": 1.0}
    training_only = (r"slim/(norm|head)_cls/.*",)

    keep_rate: Share | tuple[Share, ...] = 0.5
    locations: tuple[int, ...] = (5, 9)
    representative: bool = True
    tradeoff: Fraction | tuple[Fraction, ...] = 0.5
    stage_wise: bool = True

    def at_counts(self, counts: Sequence[int]) -> dict[str, Any] | None:
        return None  # patches come back at every stage's end

    def fewest(self, layer: int, patches: int) -> int:
        return patches

    def check_options(self) -> None:
        super().check_options()
        if self.locations[0] < 2:
            raise SlimError(f"locations={self.locations}: layer 1 comes before any class attention to rank by")

    def check_geometry(self, geometry: Geometry) -> None:
        super().check_geometry(geometry)
        if isinstance(self.tradeoff, tuple) and len(self.tradeoff) != geometry.depth:
            raise SlimError(f"tradeoff={self.tradeoff} has {len(self.tradeoff)} values for {geometry.depth} layers")

    @property
    def kept(self) -> dict[int, int]:
        """1-based layer -> patches kept, for every layer that patches are ranked in front of."""
        bound, counts, n = self.bound, {}, self.bound.num_patches
        rates = dict(zip(self.locations, self.schedule.rates, strict=True))
        for layer in range(self.locations[0], bound.depth + 1):
            n = max(1, int(bound.num_patches * rates[layer])) if layer in rates else n
            if (layer in rates or not self.stage_wise) and n < bound.num_patches:
                counts[layer] = n
        return counts

    def _ends(self, layer: int) -> bool:
        """Whether the patches left out come back after this layer."""
        return not self.stage_wise or layer + 1 in self.locations or layer == self.bound.depth

    @property
    def plan(self) -> Plan:
        counts, kept, n = [], self.kept, self.bound.num_patches
        for layer in range(1, self.bound.depth + 1):
            n = kept[layer] + self.representative if layer in kept else n
            counts.append(n)
            n = self.bound.num_patches if self._ends(layer) else n
        return Plan(tuple(counts), tuple(counts))

    def extra_flops(self) -> dict[int, int]:
        bound, counts, costs = self.bound, self.plan.attention, {}
        for layer in range(1, bound.depth + 1):
            row = (bound.prefix_tokens + counts[layer - 1]) * bound.dim if self.needs(layer, False) else 0
            left_out = (bound.num_patches - self.kept.get(layer, bound.num_patches)) * self.representative
            costs[layer] = row + left_out * bound.dim
        return {layer: cost for layer, cost in costs.items() if cost}

    def setup(self) -> None:
        if self.bound.num_classes:
            self.norm_cls = LayerNorm()
            self.head_cls = Linear(self.bound.num_classes)

    def needs(self, layer: int, train: bool) -> tuple[str, ...]:
        return ("class_attention",) if layer < max(self.kept, default=0) else ()

    def before_block(self, tokens: Tokens, layer: int, train: bool) -> Tokens:
        if layer not in self.kept:
            return tokens
        running, left = tokens.memory["running"], self.kept[layer]
        raster = select.raster_order(running, tokens.origin)
        tokens = noted(tokens, raster).tap("class_attention", raster)
        order = select.top(ranking(tokens, running), tokens.n)
        divided = divide(tokens, running, order, left, self.representative)
        # At 1 of N left out the count does not change, and the encoder would not note it.
        return divided if divided.n < tokens.n else divided.replace(kept=(*tokens.kept, divided.origin))

    def after_attention(self, tokens: Tokens, layer: int, probe: Probe, train: bool) -> Tokens:
        if not self.needs(layer, train):
            return tokens
        patches = tokens.n - (self.representative and "waiting" in tokens.memory)
        new = probe["class_attention"].sum(axis=1)[:, tokens.prefix : tokens.prefix + patches]
        if layer > 1:
            new = evolve(tokens.memory["running"], new, self._alpha(layer))
        return tokens.remember(running=new)

    def after_block(self, tokens: Tokens, layer: int, train: bool) -> Tokens:
        if "waiting" not in tokens.memory or not self._ends(layer):
            return tokens
        return join(tokens)

    def finish(self, tokens: Tokens, train: bool) -> Tokens:
        if self.kept:
            tokens = tokens.take(select.argsort(tokens.origin))
        if train and self.bound.num_classes:
            logits = self.head_cls(self.norm_cls(tokens.x[:, 0]))
            tokens = tokens.replace(taps={**tokens.taps, "class_logits": logits})
        return tokens

    def loss_terms(self, logits: Array, aux: Aux, targets: Targets) -> dict[str, Array]:
        return {
            "classification": loss_functions.classification(logits, aux.taps, targets),
            "class_token": loss_functions.cross_entropy(aux.taps["class_logits"], targets.labels),
        }

    def from_official(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        return evo_names.join_attention(state)

    def to_official(self, state: dict[str, Any]) -> dict[str, Any]:
        return evo_names.split_attention(state)

    def _alpha(self, layer: int) -> float:
        if isinstance(self.tradeoff, tuple):
            return float(self.tradeoff[layer - 1])
        return float(self.tradeoff) if layer >= self.locations[0] else 1.0
