"""ATC (Haurum et al. 2024, "Agglomerative Token Clustering"): the two nearest clusters merge until few are left."""

from __future__ import annotations

import jax.numpy as jnp

from slimvit_jax.facts import Facts
from slimvit_jax.methods.located import Located
from slimvit_jax.methods.merging import Merging
from slimvit_jax.ops import merge
from slimvit_jax.ops.linkage import Linkage, agglomerate, cosine_distances, matching
from slimvit_jax.slimming import Probe
from slimvit_jax.tokens import Tokens


class ATC(Merging, Located, kw_only=True):
    """At a location every patch token begins as a cluster; the two nearest clusters merge until int(r^k N) are left.

        d_ij  = 1 - cos(k_i, k_j),  k = mean over heads of the keys (before any q/k norm)
        d_IJ  = mean (average), max (complete) or min (single) of d_ij over i in I, j in J
        x_I   = sum_i s_i x_i / sum_i s_i over the members,  s_I = sum_i s_i
        attention = softmax(q k^T / sqrt(d) + log s)                                       (proportional attention)

    "At layer t" means inside layer t: between its attention and its MLP; locations (4, 7, 10) are the blocks 3, 6, 9 of
    the official ATC_setup/models/atc.py, which hands the distances to scikit-learn on the host, image by image; here
    the same clusters are found on the device (`ops.linkage`). A cluster's distances count its tokens of this location,
    not what they stand for. Merging a few in every layer, as the paper does without training, is
    locations=(1, 2, ..., T) with a rate for each. Average pooling weighs the tokens by their size, as ToMe's does.

    Deviations: clusters stand in the order of their first member, scikit-learn numbers them by its heap; all prefix
    tokens are protected (the release's distillation token is not); a zero key vector is unlike everything instead of
    NaN; where all tokens are kept nothing happens. Training merges as inference does; no gradient flows through the
    choice. Cost per location: n^2 d for the distances and r m D for the means, of n tokens r joining m. Besides, at
    least n - m rounds one after the other that each read and write rows of n distances: few multiply-adds, but time
    where a round is short of work, on GPUs above all. Memory: n^2 distances.

    Attributes:
      linkage: the distance of two clusters, see above. The release's default is "average".
      prop_attn: proportional attention; without it every location averages its tokens with equal weights, as released.
      keep_rate: share left at each location of what the location before left; a float or one per location.
      locations: 1-based layers inside which tokens are merged.
    """

    method = "atc"
    facts = Facts(
        source="Haurum et al. 2024, JoakimHaurum/ATC",
        cost="n² d + r m D, and n - m rounds of O(n), per location",
        training_free=True,
        grid="merged",
    )

    untrained = ({},)

    linkage: Linkage = "average"
    prop_attn: bool = True

    def extra_flops(self) -> dict[int, int]:
        dim, head = self.bound.dim, self.bound.dim // self.bound.heads
        return {layer: n * n * head + r * (n - r) * dim for layer, n, r in self.merging}

    def after_attention(self, tokens: Tokens, layer: int, probe: Probe, train: bool) -> Tokens:
        if not self.merged[layer - 1]:
            return tokens
        count = self.plan.mlp[layer - 1]
        distances = cosine_distances(self.metric(probe, layer)[:, tokens.prefix :])
        leader = agglomerate(distances, count, self.linkage)
        clusters = matching(leader, count, tokens.prefix)
        size = tokens.memory["size"] if self.prop_attn else jnp.ones_like(tokens.memory["size"])
        x, total = merge.merge_weighted(clusters, tokens.x, size)
        tokens = self.reduced(tokens, clusters, x)
        return tokens.replace(log_weight=jnp.log(total)) if self.prop_attn else tokens
