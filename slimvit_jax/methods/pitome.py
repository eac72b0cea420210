"""PiToMe (Tran et al. 2024, "Accelerating Transformers with Spectrum-Preserving Token Merging")."""

from __future__ import annotations

from slimvit_jax.facts import Facts
from slimvit_jax.methods.merging import RatioMerging
from slimvit_jax.methods.ranking import noted
from slimvit_jax.ops import merge
from slimvit_jax.slimming import Probe
from slimvit_jax.tokens import Tokens


class PiToMe(RatioMerging, kw_only=True):
    """Patches that many others are like merge; those that stand alone are protected.

        k_i   = mean over heads of the keys (before any q/k norm),  cos = cosine of k
        E_i   = mean over all n patches j of elu(cos_ij - m_l),     m_l = 0.75 (1 - (l - 1) / T) in layer l of T
        r     = floor(n - ratio n);  in the order of descending E, A is every second patch from the first, B the others
        l <= ceil(T / 2):  all patches are in A or B, and the r of A most similar to one of B merge into it
        else:              the 2 r of highest E are in A or B, all of A merge, and the others are protected
        x_j  <- (s_j x_j + sum_i s_i x_i) / (s_j + sum_i s_i),  s_j <- s_j + sum_i s_i

    Between attention and MLP of every layer. Attention is not proportional: sizes weigh the means only. Official:
    algo/pitome/patch/deit.py and merge.py (pitome_vision) of hchautran/PiToMe. Imposed scores have no meaning. Average
    pooling weighs the tokens by their size.

    Deviations: all prefix tokens are set aside, not the class token alone; where r is 0 nothing happens (the release
    breaks in the second half, with fewer than 1 / (1 - ratio) patches); ratio < 0.5 is refused (it breaks there); a
    zero key is unlike everything instead of NaN; ties go to the patch held first. Training merges as inference does;
    no gradient flows through the choice. Cost per layer: n^2 d for the energy, |A| |B| d for the similarities and
    3 r D for the merges.

    aux.scores: the energy of the first layer. aux.taps["energy"]: (B, n) of every layer that merges, in the order held.

    Attributes:
      ratio: share of the patches that every layer leaves, in [0.5, 1].
      keep_rate: in place of ratio: the share of the N patches that a layer computes on average; the ratio that comes
        nearest is used.
    """

    method = "pitome"
    facts = Facts(
        source="Tran et al. 2024, hchautran/PiToMe",
        cost="(n² + |A| |B|) d + 3 r D per layer",
        training_free=True,
        grid="merged",
        where="inside, every layer",
    )

    def extra_flops(self) -> dict[int, int]:
        dim, head = self.bound.dim, self.bound.dim // self.bound.heads
        pairs = lambda layer, n, r: merge.pairs(n) if self._everyone(layer) else r * r
        return {layer: (n * n + pairs(layer, n, r)) * head + 3 * r * dim for layer, n, r in self.merging}

    def _everyone(self, layer: int) -> bool:
        """Whether all patches take part in this layer's matching."""
        return layer <= (self.bound.depth + 1) // 2

    def after_attention(self, tokens: Tokens, layer: int, probe: Probe, train: bool) -> Tokens:
        r = self.merged[layer - 1]
        if not r:
            return tokens
        metric = self.metric(probe, layer)
        energy = merge.energy(metric[:, tokens.prefix :], 0.75 - 0.75 * (layer - 1) / self.bound.depth)
        tokens = noted(tokens.tap("energy", energy), energy)
        matching = merge.energy_matching(metric, energy, r, tokens.prefix, self._everyone(layer))
        return self.reduced(tokens, matching, *merge.merge_weighted(matching, tokens.x, tokens.memory["size"]))
