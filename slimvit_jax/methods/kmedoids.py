"""K-medoids (Marin et al. 2021/2023, "Token Pooling in Vision Transformers"): keep the centers of clusters."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from slimvit_jax.errors import SlimError
from slimvit_jax.facts import Facts
from slimvit_jax.methods.clustering import Clustering
from slimvit_jax.methods.dropping import Dropping
from slimvit_jax.methods.ranking import noted, ranking
from slimvit_jax.ops import cluster, select
from slimvit_jax.options import Count
from slimvit_jax.slimming import Probe
from slimvit_jax.text import option
from slimvit_jax.tokens import Tokens


class KMedoids(Dropping, Clustering, kw_only=True):
    """In front of a location the m medoids of the patch tokens stay; the others vanish, or join one (`squeeze`).

        w_j      = sum over heads and queries i of softmax(q_i K^T / sqrt(d))_j     of the layer before the location
        medoids  = the m tokens of highest w; then, a few rounds over:
          every token joins its nearest medoid,
          the medoid of a cluster becomes its member of least w_i sum_j |x_i - x_j|   (over all tokens j)

    with m = int(r^k N) at the k-th location. Official file: models/kmedoids.py (TokenReduction), whose blocks 3, 6, 9
    are the locations (4, 7, 10) here: the reduction stands in front of that layer, on tokens not normalised. Queries
    of prefix tokens count in w. That the sum runs over all tokens rather than the cluster's, and that the weight
    multiplies the candidate, is how the release differs from the paper. What is held are tokens, not means, so
    `aux.kept` says which; tap "clusters" has the final assignment.

    Deviations: the release updates cluster by cluster, which is the same as all at once since assignments do not
    change within a round; a cluster that is empty (identical tokens) keeps its medoid; where all tokens are kept they
    stay in their order. With equal_weight the release starts from one random token; here from the first one, so that
    results repeat. Imposed scores replace w.

    Cost per location: n^2 D for the distances, and the layer before it sums its attention over the queries, which rules
    out a fused kernel there. When: pruning that keeps diverse tokens, not only those the class token looks at.

    Attributes:
      keep_rate: share left at each location of what the location before left; a float or one per location.
      locations: 1-based layers in front of which tokens are dropped; the first layer has no attention before it, so
        it needs equal_weight.
      cluster_iters: rounds.
      equal_weight: w = 1, and initial medoids far apart.
      squeeze, squeeze_temperature, rejoin, fill: what becomes of the dropped, see `Dropping`; the survivor of greatest
        cosine takes them in, not the medoid of least distance.
    """

    method = "kmedoids"
    facts = Facts(
        source="Marin et al. 2023, JoakimHaurum/TokenReduction",
        cost="n² D per location, the layer before it without a fused kernel",
        training_free=True,
        where="before",
    )

    untrained = ({},)

    cluster_iters: Count = 3
    equal_weight: bool = False

    def check_options(self) -> None:
        super().check_options()
        if self.locations[0] == 1 and not self.equal_weight:
            raise SlimError(
                f"locations={self.locations}: tokens are weighed by the attention of the layer before, and layer 1 has"
                f" none; begin at 2 or later, or give {option('method', 'equal_weight', True)}"
            )

    def _drops_before(self, layer: int) -> bool:
        n, m = self.before_and_after.get(layer, (0, 0))
        return m < n

    def extra_flops(self) -> dict[int, int]:
        distances = {layer: n * n * self.bound.dim for layer, (n, m) in self.before_and_after.items() if m < n}
        return self.with_squeeze_flops(distances)

    def needs(self, layer: int, train: bool) -> tuple[str, ...]:
        return ("received",) if self._drops_before(layer + 1) and not self.equal_weight else ()

    def after_attention(self, tokens: Tokens, layer: int, probe: Probe, train: bool) -> Tokens:
        if "received" not in probe:
            return tokens
        received = probe["received"]  # means over the queries
        weight = (received.sum(axis=1) * received.shape[-1])[:, tokens.prefix :]
        return tokens.remember(token_weight=jax.lax.stop_gradient(weight))

    def reduce(self, tokens: Tokens, stage: int, count: int, train: bool) -> Tokens:
        if count == tokens.n:
            return tokens
        distances = cluster.pairwise_distances(jax.lax.stop_gradient(tokens.patches))
        if self.equal_weight:
            weight = jnp.ones(distances.shape[:2], jnp.float32)
            centers = cluster.far_apart(distances, jnp.zeros(distances.shape[0], jnp.int32), count)
        else:
            weight = ranking(tokens, tokens.memory["token_weight"])
            centers = select.top(weight, count)
            tokens = noted(tokens, weight)
        centers, clusters = cluster.k_medoids(distances, weight, centers, self.cluster_iters)
        places = jnp.broadcast_to(jnp.arange(count, 0, -1, dtype=jnp.float32), centers.shape)
        tokens = self.drop(tokens, count, select.put(jnp.zeros(weight.shape, jnp.float32), centers, places))
        return tokens.tap("centers", centers).tap("clusters", clusters)
