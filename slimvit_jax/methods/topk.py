"""Top-k by class attention: the plain pruning baseline (Haurum et al. 2023, "Which Tokens to Use?")."""

from __future__ import annotations

from slimvit_jax.facts import Facts
from slimvit_jax.methods.dropping import Dropping
from slimvit_jax.methods.located import Located
from slimvit_jax.methods.ranking import class_attention, ranking
from slimvit_jax.options import Share
from slimvit_jax.plan import Schedule
from slimvit_jax.slimming import Probe
from slimvit_jax.tokens import Tokens


class TopK(Dropping, Located, kw_only=True):
    """The patches with the highest class attention stay, in descending order; the others vanish.

        a_i = 1/H sum_h softmax(q_cls K^T / sqrt(d))_hi,  kept at the k-th location: int(r^k N), N of the grid

    "At layer t" means inside layer t: between its attention and its MLP; locations (4, 7, 10) are the blocks 3, 6, 9
    of the official models/topk.py (TokenReduction). EViT without its fused token differs only in its counts.

    Deviations: N is the grid's, not a fixed 196; keeping everything is allowed (the release crashes); prefix tokens
    beside the class token never enter the ranking. Without class token a_i is the attention that a patch receives, see
    `Slimming.needs`. Cost: one extra query row, (P + n) D.

    Attributes:
      keep_rate: share kept at each location of what the location before left; a float or one per location.
      locations: 1-based layers inside which patches are dropped.
      token_ratio: the shares of the original patches left at each location, in place of keep_rate.
      squeeze, squeeze_temperature: what becomes of the dropped, see `Dropping`.
    """

    method = "topk"
    score_name = "class attention"
    facts = Facts(
        source="Haurum et al. 2023, JoakimHaurum/TokenReduction", cost="(P + n) D per location", training_free=True
    )
    untrained = ({}, {"squeeze": "mean"})
    in_place_of_keep_rate = ("token_ratio",)

    token_ratio: tuple[Share, ...] | None = None

    @property
    def schedule(self) -> Schedule:
        return Schedule(self.keep_rate, self.locations, self.where, self.of, self.token_ratio)

    def _drops_in(self, layer: int) -> bool:
        return self.plan.mlp[layer - 1] < self.plan.attention[layer - 1]

    def extra_flops(self) -> dict[int, int]:
        dim, prefix, plan = self.bound.dim, self.bound.prefix_tokens, self.plan
        row = {t: (prefix + plan.attention[t - 1]) * dim for t in self.locations if self._drops_in(t)}
        return self.with_squeeze_flops(row)

    def needs(self, layer: int, train: bool) -> tuple[str, ...]:
        return ("class_attention",) if self._drops_in(layer) else ()

    def after_attention(self, tokens: Tokens, layer: int, probe: Probe, train: bool) -> Tokens:
        if not self._drops_in(layer):
            return tokens
        tokens, attention = class_attention(tokens, probe)
        return self.drop(tokens, self.plan.mlp[layer - 1], ranking(tokens, attention))
