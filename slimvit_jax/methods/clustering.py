"""What the methods share that put a smaller set of tokens in front of some layers."""

from __future__ import annotations

from slimvit_jax import grid
from slimvit_jax.methods.located import Located
from slimvit_jax.ops import cluster
from slimvit_jax.tokens import Tokens


class Clustering(Located, kw_only=True):
    """In front of the k-th location the patch tokens become int(r^k N) others; prefix tokens pass by.

    Attributes:
      keep_rate: share left at each location of what the location before left; a float or one per location.
      locations: 1-based layers in front of which this happens.
    """

    where = "before"

    def before_block(self, tokens: Tokens, layer: int, train: bool) -> Tokens:
        if layer not in self.locations:
            return tokens
        stage = self.locations.index(layer)
        return self.reduce(tokens, stage, self.counts[stage], train)

    def reduce(self, tokens: Tokens, stage: int, count: int, train: bool) -> Tokens:
        """The tokens with `count` patch tokens, at the location numbered `stage` from 0."""
        raise NotImplementedError


class SoftClustering(Clustering, kw_only=True):
    """Every location has a module, `cluster_layers`, whose queries or centers each take a share of every token.

    It gives the new tokens (B, m, D) and the assignment (B, m, n), which is tapped.
    """

    any_budget = False  # a module has m rows
    merges = True
    keep_all_is_dense = False

    def extra_flops(self) -> dict[int, int]:
        return {layer: 2 * n * m * self.bound.dim for layer, (n, m) in self.before_and_after.items()}

    def reduce(self, tokens: Tokens, stage: int, count: int, train: bool) -> Tokens:
        merged, assignment = self.cluster_layers[stage](tokens.patches)
        position = tokens.placed(lambda places: cluster.centroids(assignment, places))
        tokens = grid.follow_shares(tokens, assignment).with_patches(merged, position=position)
        return tokens.tap("assignment", assignment)
