"""ToFu (Kim et al. 2024, "Token Fusion: Bridging the Gap between Token Pruning and Token Merging")."""

from __future__ import annotations

from jax import Array

from slimvit_jax.facts import Facts
from slimvit_jax.methods.merging import RatioMerging
from slimvit_jax.ops import merge, select
from slimvit_jax.plan import Geometry
from slimvit_jax.slimming import Probe
from slimvit_jax.tokens import Tokens


class ToFu(RatioMerging, kw_only=True):
    """Early layers drop the most redundant tokens, late ones merge them into means that keep their length.

        r  = floor(M - ratio M) of the M tokens in a layer, the class token among them, leave it
        which: ToMe's matching of the heads' mean keys, A = even positions, B = odd ones
        l <= floor(T / 2) + 1:  those of A that match best are dropped
        else:  m = plain mean of a token of B and what matches it,  x_B <- m / |x_B| * max(|x_B|, |x_A| ...)

    Between attention and MLP of every layer. There are no sizes and no proportional attention. The authors published no
    code; this is algo/tofu of hchautran/PiToMe, which is the opentome/timm/tofu.py of OpenToMe given r. Both divide by
    the norm of the token before the merge, which does not preserve the length; `mlerp` divides by that of the mean, as
    the paper's MLERP does.

    Deviations: all prefix tokens are protected, not the class token alone; no more than half of the patches leave a
    layer, as in OpenToMe; ratio < 0.5 is refused. Training does what inference does; no gradient flows through the
    choice. Average pooling is the plain mean. Cost per layer: |A| |B| d for the similarities, and where it merges 3 r D
    for the means and 2 |B| D for the norms.

    aux.taps["owner"] and ["size"]: a dropped patch counts as part of the token that it matched, as in the releases.

    Attributes:
      ratio: share of the tokens that every layer leaves, in [0.5, 1].
      keep_rate: in place of ratio: the share of the N patches that a layer computes on average; the ratio that comes
        nearest is used.
      mlerp: the paper's norm in place of the releases'.
    """

    method = "tofu"
    facts = Facts(
        source="Kim et al. 2024; code in hchautran/PiToMe",
        cost="|A| |B| d per layer, (3 r + 2 |B|) D in the later ones",
        training_free=True,
        grid="dropped, then merged",
        where="inside, every layer",
    )

    mlerp: bool = False

    def counted(self, geometry: Geometry) -> int:
        return geometry.prefix_tokens

    def _drops(self, layer: int) -> bool:
        """Whether this layer drops; else it merges."""
        return layer <= self.bound.depth // 2 + 1

    def extra_flops(self) -> dict[int, int]:
        dim, head, cost = self.bound.dim, self.bound.dim // self.bound.heads, {}
        for layer, n, r in self.merging:
            length = n + self.bound.prefix_tokens
            means = 0 if self._drops(layer) else (3 * r + 2 * (length // 2)) * dim
            cost[layer] = merge.pairs(length) * head + means
        return cost

    def after_attention(self, tokens: Tokens, layer: int, probe: Probe, train: bool) -> Tokens:
        r = self.merged[layer - 1]
        if not r:
            return tokens
        matching = merge.bipartite_soft_matching(self.metric(probe, layer), r, tokens.prefix)
        assert matching is not None  # r > 0 is what the plan allows
        if self._drops(layer):
            x = select.gather(tokens.x, matching.held)
        else:
            x = merge.merge_keeping_norm(matching, tokens.x, exact=self.mlerp)
        return self.reduced(tokens, matching, x)

    def pooling_weights(self, tokens: Tokens, train: bool) -> Array | None:
        return None
