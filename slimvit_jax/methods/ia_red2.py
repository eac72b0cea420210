"""IA-RED2 (Pan et al. 2021): a policy in front of each group of layers, trained by reward, keeps or drops patches."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from slimvit_jax import losses as loss_functions
from slimvit_jax.errors import SlimError
from slimvit_jax.facts import Facts
from slimvit_jax.layers import LayerNorm, truncated
from slimvit_jax.losses import Targets
from slimvit_jax.methods.dropping import Dropping
from slimvit_jax.methods.ranking import noted, ranking
from slimvit_jax.options import Count, NotNegative, Range, Share
from slimvit_jax.plan import Geometry, Plan, Schedule, check_locations
from slimvit_jax.tokens import Aux, Tokens

DROPPED = -1000.0  # added to the attention logits of a dropped key; exp() of it is an exact float32 zero


def reward(correct: Array, kept_share: Array, penalty: float) -> Array:
    """1 - share^2 for a right prediction, -tau for a wrong one.

    Args:
      correct: (B,) bool.
      kept_share: (..., B), patches kept over N.
      penalty: tau.

    Returns:
      (..., B) float32.
    """
    return jnp.where(correct, 1.0 - jnp.square(kept_share), -penalty)


def leave_one_out(values: Array, counted: Array) -> Array:
    """Each image's value less the mean over the other images of the batch; the value itself where there is no other.

    Args:
      values: (..., B).
      counted: (B,) float32, 0 for rows that only fill up the batch.

    Returns:
      (..., B), 0 where not counted.
    """
    others = counted.sum() - counted
    total = (values * counted).sum(axis=-1, keepdims=True)
    return counted * (values - (total - values * counted) / jnp.maximum(others, 1.0))


def curriculum(locations: tuple[int, ...], depth: int) -> tuple[dict[str, Any], ...]:
    """The stages of training: group by group, first its interpreter alone, then the layers behind it.

    Returns:
      Dicts with `active_groups`, the method's option, and `trainable`, regular expressions of parameter paths.

    >>> curriculum((1, 3), 4)[2:]
    ({'active_groups': 2, 'trainable': ('slim/interpreters_1/.*',)}, \
{'active_groups': 2, 'trainable': ('blocks_(2|3)/.*', 'norm/.*', 'fc_norm/.*', 'head/.*', 'head_dist/.*')})
    """
    tail = ("norm/.*", "fc_norm/.*", "head/.*", "head_dist/.*")
    stages: list[dict[str, Any]] = []
    for group, first in enumerate(check_locations(locations, depth)):
        blocks = "|".join(str(i) for i in range(first - 1, depth))
        stages.append({"active_groups": group + 1, "trainable": (f"slim/interpreters_{group}/.*",)})
        stages.append({"active_groups": group + 1, "trainable": (f"blocks_({blocks})/.*", *tail)})
    return tuple(stages)


class Interpreter(nn.Module):
    """The logits, one per head, of keeping a patch: how well it fits the policy token.

    Attributes:
      heads: H.
      initial_keep: probability at the start of training, about.
    """

    heads: int
    initial_keep: float

    @nn.compact
    def __call__(self, anchor: Array, patches: Array) -> Array:
        """(B, D) policy tokens and (B, n, D) patches to (B, n) float32 probabilities of keeping."""
        dim = patches.shape[-1]
        norm, shape = LayerNorm(name="norm"), (dim, self.heads, dim // self.heads)
        query, key = (self.param(name, truncated, shape, jnp.float32) for name in ("query", "key"))
        start = math.log(self.initial_keep / (1.0 - self.initial_keep))
        offset = self.param("offset", nn.initializers.constant(start), (self.heads,), jnp.float32)
        # F_q(x) . F_k(P) = x . (F_q^T F_k(P)): projecting the one policy token twice spares projecting every patch.
        folded = jnp.einsum("dhe,bhe->bhd", query, jnp.einsum("bd,dhe->bhe", norm(anchor), key))
        fit = jnp.einsum("bnd,bhd->bnh", norm(patches), folded) / math.sqrt(shape[-1])
        return jax.nn.sigmoid(fit + offset).mean(axis=-1)


class IARED2(Dropping, kw_only=True):
    """The layers form groups; in front of each a multi-head interpreter decides which patches the group computes.

        p_i = 1/H sum_h sigmoid(F_q^h(x_i) . F_k^h(P)),  P the class token
        training:   u_i ~ Bernoulli(p_i); a dropped patch is no key of any later attention
        reward:     R(u) = 1 - (|u| / N)^2 for a right prediction, -tau for a wrong one
        policy:     -mean_b A mean_i log pi(u_i),  A = R(u) less a baseline;  interpreters alone learn from it
        inference:  the static number of patches of largest p

    "At layer t" means before layer t. No code was released. From the paper: three groups, the averaged sigmoid heads,
    Bernoulli policy, reward, policy gradient, and the curriculum of `curriculum()`, group by group. Ours: norm in front
    of the projections, scale 1/sqrt(D/H) and an offset per head, which starts at `initial_keep`; as baseline the mean
    reward of the other images of the batch, which needs no second forward pass; the mean, not the sum, over patches;
    tau = 1; an entropy term, so that a batch all wrong or all right still moves the policy; masking while training; at
    inference a fixed number of patches in place of p > 0.5, since shapes are static. Without class token the mean patch
    stands in for it. A right prediction is one of the most probable class of the (possibly mixed) target.

    Cost per location on n patches: 2 D^2 + n H D.

    aux.taps: "keep_probabilities", (B, n) per location; in training also "decisions", (B, N) 0 or 1, with those before
    in them. aux.scores is the first location's probabilities.

    Attributes:
      keep_rate: share kept at each location of what the location before left, rounded up; a float or one per location.
      locations: 1-based first layers of the groups; None: three groups as equal as can be.
      active_groups: only the first so many groups drop anything; None: all.
      tau: what a wrong prediction costs.
      initial_keep: probability of keeping before training, in (0, 1).
      squeeze, squeeze_temperature: what becomes of the dropped, see `Dropping`.
    """

    method = "ia_red2"
    score_name = "probability of keeping"
    facts = Facts(
        source="Pan et al. 2021",
        cost="2 D² + n H D per location",
        learns="3 interpreters",
        training="masked, by reward",
        where="before",
    )
    trains_on_all = True
    loss_weights: ClassVar[Mapping[str, float]] = {"classification": 1.0, "policy": 1.0, "entropy": 0.01}

    keep_rate: Share | tuple[Share, ...] = 0.7
    locations: tuple[int, ...] | None = None
    active_groups: Count | None = None
    tau: NotNegative = 1.0
    initial_keep: Annotated[float, Range(above=0, below=1)] = 0.9

    def check_options(self) -> None:
        super().check_options()
        if self.locations is not None:
            Schedule(self.keep_rate, self.locations)

    def check_geometry(self, geometry: Geometry) -> None:
        super().check_geometry(geometry)
        self.schedule.plan(geometry)
        if self.active_groups is not None and self.active_groups > len(self.places):
            raise SlimError(f"active_groups={self.active_groups} must be a whole number in 1..{len(self.places)}")

    @property
    def schedule(self) -> Schedule:
        """What is left where, with all groups."""
        return Schedule(self.keep_rate, self.places, "before", "left")

    @property
    def places(self) -> tuple[int, ...]:
        """1-based first layers of the groups."""
        if self.locations is not None:
            return self.locations
        groups = min(3, self.bound.depth)
        return tuple(self.bound.depth * g // groups + 1 for g in range(groups))

    @property
    def dropping(self) -> tuple[int, ...]:
        """The first layers of the groups that drop patches."""
        return self.places[: self.active_groups]

    @property
    def dropping_plan(self) -> Plan:
        rates = self.schedule.rates[: self.active_groups]
        return dataclasses.replace(self.schedule, keep_rate=rates, locations=self.dropping).plan(self.bound)

    def extra_flops(self) -> dict[int, int]:
        dim, costs, n = self.bound.dim, {}, self.bound.num_patches
        for layer in self.dropping:
            if (left := self.plan.attention[layer - 1]) < n:
                costs[layer] = 2 * dim * dim + n * self.bound.heads * dim
                n = left
        return self.with_squeeze_flops(costs)

    def setup(self) -> None:
        self.interpreters = [Interpreter(self.bound.heads, float(self.initial_keep)) for _ in self.places]

    def before_block(self, tokens: Tokens, layer: int, train: bool) -> Tokens:
        if layer not in (self.places if self.is_initializing() else self.dropping):
            return tokens
        left = self.plan.attention[layer - 1]
        if not train and left == tokens.n:
            return tokens
        # The policy learns from the reward alone, and the backbone from the classification alone.
        x = jax.lax.stop_gradient(tokens.x).astype(jnp.float32)
        patches = x[:, tokens.prefix :]
        anchor = x[:, 0] if self.bound.class_token else patches.mean(axis=1)
        keep = self.interpreters[self.places.index(layer)](anchor, patches)
        tokens = noted(tokens, keep).tap("keep_probabilities", keep)
        if not train:
            return self.drop(tokens, left, ranking(tokens, keep))
        before = tokens.memory.get("decision", jnp.ones_like(keep))
        chosen = self._sample(keep) * before
        tokens = self.absorb(tokens, tokens, before - chosen, chosen)
        tokens = tokens.remember(decision=chosen).tap("decisions", chosen)
        return tokens.replace(log_weight=tokens.per_token(DROPPED * (1.0 - chosen), 0.0))

    def _sample(self, keep: Array) -> Array:
        if self.is_initializing():
            return jnp.ones_like(keep)
        return jax.random.bernoulli(self.make_rng("dropout"), jax.lax.stop_gradient(keep)).astype(jnp.float32)

    def pooling_weights(self, tokens: Tokens, train: bool) -> Array | None:
        decision = tokens.memory.get("decision")
        if decision is None or self.rejoins_at is not None:  # once all are back none weighs more
            return None
        decision = decision * tokens.patch_sizes
        total = decision.sum(axis=1, keepdims=True)
        return jnp.where(total > 0, decision / jnp.maximum(total, 1.0), 1.0 / decision.shape[1])

    def loss_terms(self, logits: Array, aux: Aux, targets: Targets) -> dict[str, Array]:
        keep, chosen = jnp.stack(aux.taps["keep_probabilities"]), jnp.stack(aux.taps["decisions"])  # (G, B, N)
        alive = jnp.concatenate([jnp.ones_like(chosen[:1]), chosen[:-1]])
        counted = jnp.ones(len(logits)) if targets.mask is None else targets.mask
        right = logits.argmax(axis=-1) == targets.labels.argmax(axis=-1)
        rewards = reward(right, chosen.mean(axis=-1), self.tau)
        advantage = jax.lax.stop_gradient(leave_one_out(rewards, counted))
        keep = jnp.clip(keep, 1e-6, 1.0 - 1e-6)
        patches = jnp.maximum(alive.sum(axis=-1), 1.0)
        log_pi = (alive * jnp.where(chosen > 0, jnp.log(keep), jnp.log1p(-keep))).sum(axis=-1) / patches
        entropy = -(alive * (keep * jnp.log(keep) + (1.0 - keep) * jnp.log1p(-keep))).sum(axis=-1) / patches
        return {
            "classification": loss_functions.classification(logits, aux.taps, targets),
            "policy": -(advantage * log_pi).mean(axis=0),
            "entropy": -entropy.mean(axis=0),
        }
