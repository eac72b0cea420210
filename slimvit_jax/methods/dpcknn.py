"""DPC-KNN (Du et al. 2016; for vision transformers Zeng et al. 2022, TCFormer): merge around density peaks."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from slimvit_jax import grid
from slimvit_jax.errors import SlimError
from slimvit_jax.facts import Facts
from slimvit_jax.layers import Linear
from slimvit_jax.methods.clustering import Clustering
from slimvit_jax.methods.ranking import noted, ranking
from slimvit_jax.ops import cluster, select
from slimvit_jax.options import Count
from slimvit_jax.plan import Geometry
from slimvit_jax.tokens import Tokens


class ScoreLayer(nn.Module):
    """The logarithm of the learned weight of a token in its cluster: a linear score."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(B, n, D) to (B, n) float32."""
        return Linear(1, name="score")(x.astype(jnp.float32))[..., 0]


class DPCKNN(Clustering, kw_only=True):
    """In front of a location tokens gather around density peaks and are averaged with learned weights.

        d_ij  = |x_i - x_j| / sqrt(D)
        rho_i = exp(-mean of d^2 to the k nearest tokens, itself included)
        delta_i = min over j with rho_j > rho_i of d_ij   (the largest distance of the image where there is none)
        centers: the m tokens of highest rho delta; every other token joins the nearest one
        x'_c  = sum_i w_i x_i / (sum_i w_i + 1e-6) over the members, w_i = exp(a^T x_i + b)

    with m = int(r^k N) at the k-th location. Official file: models/dpcknn.py (TokenReduction), whose blocks 3, 6, 9
    are the locations (4, 7, 10) here: the reduction stands in front of that layer, on tokens not normalised. The
    order held is that of the centers, highest rho delta first.

    Deviations: no noise of 1e-6 on the densities, so the same image always gives the same tokens; the lower index
    wins a tie; rho, delta and w are kept as logarithms, since large tokens make them leave float32 (aux.scores is
    log (rho delta)). No gradient flows through the clustering, as released. Imposed scores replace rho delta at the
    first location (later tokens are made up).

    Cost per location: n^2 D for the distances, n D for the score, and m n D for the averages, taken as one product
    because a scatter is slow. When: merging without a class token; the clusters are meaningful to look at.

    Attributes:
      keep_rate: share left at each location of what the location before left; a float or one per location.
      locations: 1-based layers in front of which tokens are merged.
      k_neighbors: k, for the density.
      equal_weight: w = 1, without learned parameters.
    """

    method = "dpcknn"
    facts = Facts(
        source="Zeng et al. 2022, JoakimHaurum/TokenReduction",
        cost="n² D + n D + m n D per location",
        learns="D + 1 per location",
        grid="merged",
        where="before",
    )
    merges = True

    k_neighbors: Count = 5
    untrained = ({"equal_weight": True},)

    equal_weight: bool = False

    @property
    def learns_places(self) -> bool:
        return not self.equal_weight

    def check_geometry(self, geometry: Geometry) -> None:
        super().check_geometry(geometry)
        for layer, (n, _) in self.before_and_after.items():
            if self.k_neighbors > n:
                raise SlimError(
                    f"k_neighbors={self.k_neighbors}: only {n} tokens are there at location {layer}; must lie in 1..{n}"
                )

    def extra_flops(self) -> dict[int, int]:
        dim, score = self.bound.dim, not self.equal_weight
        return {layer: (n * n + n * m + n * score) * dim for layer, (n, m) in self.before_and_after.items()}

    def setup(self) -> None:
        if not self.equal_weight:
            self.cluster_layers = [ScoreLayer() for _ in self.locations]

    def reduce(self, tokens: Tokens, stage: int, count: int, train: bool) -> Tokens:
        x = tokens.patches
        distances = cluster.pairwise_distances(jax.lax.stop_gradient(x)) / x.shape[-1] ** 0.5
        peaks = cluster.peak_scores(distances, self.k_neighbors)
        tokens = noted(tokens, peaks)
        centers = select.top(ranking(tokens, peaks), count)
        clusters = cluster.assign_to_centers(distances, centers)
        weight = jnp.zeros(x.shape[:2], jnp.float32) if self.equal_weight else self.cluster_layers[stage](x)
        merged = cluster.merge_clusters(x, weight, clusters, count)
        position = tokens.placed(lambda places: cluster.merge_clusters(places, weight, clusters, count))
        tokens = grid.follow_clusters(tokens, clusters).with_patches(merged, position=position)
        return tokens.tap("centers", centers).tap("clusters", clusters)
