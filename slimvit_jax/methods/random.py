"""Random patches: the baseline that any claim must beat."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from slimvit_jax.facts import Facts
from slimvit_jax.methods.dropping import Dropping
from slimvit_jax.methods.located import Located
from slimvit_jax.options import Seed
from slimvit_jax.tokens import Tokens


class Random(Dropping, Located, kw_only=True):
    """Patches are dropped without looking at them, at the budgets of life regression.

        n_k = ceil(r n_{k-1}) after the k-th location,  s_i ~ U(0, 1),  kept: the n_k patches of highest s_i

    "At layer t" means after layer t has run, as in life regression: the same plan, so that the two compare at equal
    cost. The scores are drawn once, in front of the first layer, and the patches sorted at the first location; every
    later drop is a prefix slice. At inference the scores depend on `seed` alone: every image keeps the same patches,
    whatever its place in the batch. Training draws anew for every image and step from the rng "dropout". Scores given
    with `model.apply(..., scores=)` take their place on both paths. Cost: none.

    Attributes:
      keep_rate: share kept at each location of what the location before left; a float or one per location.
      locations: 1-based layers after which patches are dropped.
      seed: of the choice at inference.
      squeeze, squeeze_temperature: what becomes of the dropped, see `Dropping`.
    """

    method = "random"
    score_name = "random number"
    facts = Facts(source="a baseline", cost="nothing", training_free=True, where="after")
    untrained = ({"squeeze": "mean"},)
    where = "after"
    of = "left"

    seed: Seed = 0

    def extra_flops(self) -> dict[int, int]:
        return self.with_squeeze_flops({})

    def start(self, tokens: Tokens, train: bool) -> Tokens:
        given = tokens.memory.get("given_scores")
        if given is not None:
            return tokens.remember(scores=given)
        shape = tokens.origin.shape
        if train and not self.is_initializing():
            return tokens.remember(scores=jax.random.uniform(self.make_rng("dropout"), shape, jnp.float32))
        scores = jax.random.uniform(jax.random.key(self.seed), shape[1:], jnp.float32)
        return tokens.remember(scores=jnp.broadcast_to(scores, shape))

    def after_block(self, tokens: Tokens, layer: int, train: bool) -> Tokens:
        counts = self.plan.attention
        if layer == self.bound.depth or counts[layer] >= tokens.n:
            return tokens
        if tokens.n == self.bound.num_patches:
            return self.drop(tokens, counts[layer], tokens.memory["scores"])  # the one sort
        return self.drop(tokens, counts[layer])
