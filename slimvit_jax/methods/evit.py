"""EViT (Liang et al. 2022): keep what the class token attends to, fuse the rest."""

from __future__ import annotations

import math

import jax.numpy as jnp

from slimvit_jax.errors import SlimError
from slimvit_jax.facts import Facts
from slimvit_jax.methods.dropping import Dropping
from slimvit_jax.methods.located import Located
from slimvit_jax.methods.ranking import class_attention, ranking
from slimvit_jax.ops import select
from slimvit_jax.ops.evolution import with_representative
from slimvit_jax.plan import Plan, check_keep_rate
from slimvit_jax.slimming import Probe
from slimvit_jax.tokens import Tokens


class EViT(Dropping, Located, kw_only=True):
    """Patches are ranked by the class token's attention, averaged over the heads; the others become one token.

        a_i     = 1/H sum_h softmax(q_cls K^T / sqrt(d))_hi        of this very layer, over all tokens
        kept    = the ceil(r n) patches of highest a_i, of the n there are (a fused token counts among them)
        x_fused = sum over the others of a_i x_i                   (weights not normalised, as released)

    "At layer t" means inside layer t: between its attention (residual added) and its MLP. Official: evit.py, class
    EViT; locations (4, 7, 10) are its blocks 3, 6, 9. The order held is: kept by descending score, then the fused
    token, which is ranked, kept or fused again like any other from then on. Where everything is kept nothing is fused.
    Training drops exactly what inference drops; the authors lower the keep rate over the epochs (`keep_rate_schedule`).

    Deviations: a distillation token and registers never enter the ranking (the release breaks with one). `aux.kept`
    lists the kept tokens without the one just fused, and -1 for an earlier fused one among them. Without class token
    a_i is the attention that a patch receives, see `Slimming.needs`. Cost: one extra query row, (P + n) D, and
    n_dropped D for the fusion.

    Attributes:
      keep_rate: share kept of the patch tokens there are at each location; a float or one per location.
      locations: 1-based layers inside which tokens are dropped.
      fuse_token: append the weighted sum of the dropped tokens as one more token; None: unless they are squeezed.
      squeeze, squeeze_temperature: what becomes of the dropped, see `Dropping`; True is eTPS.
    """

    method = "evit"
    score_name = "class attention"
    facts = Facts(
        source="Liang et al. 2022, youweiliang/evit",
        cost="(P + n) D per location, (n - kept) D for the fusion",
        training_free=True,
    )

    untrained = ({}, {"squeeze": "mean"})

    fuse_token: bool | None = None

    def check_options(self) -> None:
        super().check_options()
        if self.fuse_token and self.squeeze:
            raise SlimError(
                f"fuse_token=True and squeeze={self.squeeze!r}: the dropped patches go into one more token or into the"
                " kept ones, not into both; leave one of them out"
            )

    def rate_for(self, before: int, after: int) -> float:
        return round((after - self.fuses - 0.5) / before, 6) if after < before else 1.0

    def fewest(self, layer: int, patches: int) -> int:
        return min(patches, 1 + self.fuses)

    @property
    def fuses(self) -> bool:
        """Whether the dropped become one more token."""
        return not self.squeeze if self.fuse_token is None else self.fuse_token

    @property
    def kept(self) -> dict[int, tuple[int, int]]:
        """Layer to (tokens before, of these kept), for the layers that drop something; the fused token not counted."""
        drops, n = {}, self.bound.num_patches
        for layer, rate in zip(self.locations, self.schedule.rates, strict=True):
            left = math.ceil(rate * n)
            if left < n:
                drops[layer] = (n, left)
                n = left + self.fuses
        return drops

    @property
    def dropping_plan(self) -> Plan:
        drops = self.kept
        counts = [left + self.fuses for _, left in drops.values()]
        return Plan.drop(self.bound, tuple(drops), counts, "inside")

    def extra_flops(self) -> dict[int, int]:
        dim, prefix = self.bound.dim, self.bound.prefix_tokens
        own = {layer: (prefix + n) * dim + (n - left) * dim * self.fuses for layer, (n, left) in self.kept.items()}
        return self.with_squeeze_flops(own)

    def needs(self, layer: int, train: bool) -> tuple[str, ...]:
        return ("class_attention",) if layer in self.kept else ()

    def after_attention(self, tokens: Tokens, layer: int, probe: Probe, train: bool) -> Tokens:
        if layer not in self.kept:
            return tokens
        tokens, attention = class_attention(tokens, probe)
        _, left = self.kept[layer]
        scores = ranking(tokens, attention)
        if not self.fuses:
            return self.drop(tokens, left, scores)
        order = select.top(scores, tokens.n)
        kept = tokens.take(order[:, :left])
        dropped = order[:, left:]
        fused = jnp.einsum(
            "bn,bnd->bd",
            select.gather(attention, dropped),
            select.gather(tokens.patches, dropped),
            preferred_element_type=jnp.float32,
        )
        origin = jnp.pad(kept.origin, ((0, 0), (0, 1)), constant_values=-1)
        patches = jnp.concatenate([kept.patches, fused[:, None].astype(kept.x.dtype)], axis=1)
        position = tokens.placed(
            lambda places: with_representative(select.gather(places, order), select.gather(attention, order), left)
        )
        both = kept.with_patches(patches, origin, position)
        return both.replace(kept=(*kept.kept, kept.origin))  # what was kept: not the token just made


def keep_rate_schedule(
    keep_rate: float, epochs: int, start: int = 10, end: int = 100, levels: int = 4
) -> tuple[float, ...]:
    """The keep rate of every epoch: 1 until `start`, then down a cosine to `keep_rate` at `end`, in a few steps.

        r(e) = r + (1 - r) (1 + cos(pi (e - start) / (end - start))) / 2

    The authors change it every iteration (helpers.py, adjust_keep_rate); each new value is a new shape and a new
    compilation here, so the cosine is rounded to the nearest of `levels` equal steps between 1 and `keep_rate`. The
    epochs of one value are one stage of training.

    Args:
      keep_rate: r, the final rate, in (0, 1].
      epochs: length of the training.
      start: first epoch of the descent.
      end: epoch from which on the rate is r.
      levels: steps down, at least 1; at most levels + 1 different rates occur.

    Raises:
      SlimError: for values that make no schedule.

    >>> keep_rate_schedule(0.7, 8, start=2, end=6, levels=2)
    (1.0, 1.0, 1.0, 0.85, 0.85, 0.85, 0.7, 0.7)
    """
    check_keep_rate(keep_rate)
    if epochs < 1 or levels < 1 or not 0 <= start <= end:
        raise SlimError(
            f"epochs={epochs}, start={start}, end={end}, levels={levels}: need epochs >= 1, levels >= 1 and"
            " 0 <= start <= end"
        )
    rates = []
    for epoch in range(epochs):
        done = 1.0 if epoch >= end else max(0, epoch - start) / max(1, end - start)
        share = (1 - math.cos(math.pi * done)) / 2
        step = math.floor(share * levels + 0.5 + 1e-9)
        rates.append(round(1 - (1 - keep_rate) * step / levels, 6))
    return tuple(rates)
