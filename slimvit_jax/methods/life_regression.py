"""Life regression (Chen et al.): one module predicts after an early layer how long every patch lives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from slimvit_jax.errors import SlimError
from slimvit_jax.facts import Facts
from slimvit_jax.methods.dropping import Dropping
from slimvit_jax.methods.life_predictor import LifePredictor
from slimvit_jax.methods.located import Located
from slimvit_jax.ops import coverage, life, select
from slimvit_jax.options import Count, Natural, Positive, Share
from slimvit_jax.plan import Geometry, Plan, Schedule, check_budgets
from slimvit_jax.slimming import Probe
from slimvit_jax.tokens import Tokens

#: Up to so many patches the order is made one by one: a short chain, and in a small grid every place counts.
FEW_PATCHES = 64


class LifeRegression(Dropping, Located, kw_only=True):
    """Patches are sorted once by their predicted life; every later reduction is a prefix slice.

    "At layer t" means after layer t has run: with locations (4, 7, 10) and keep rate r, layers 1-4 compute N patches,
    5-7 compute ceil(r N), 8-10 the ceil of r times that, and so on; this reproduces the FLOPs of the paper's tables.

    Training drops nothing: the attention of every layer t after t_base weighs each key by beta(t) of equation (7).
    Deviations from the paper: log beta travels instead of beta (equal, but does not underflow); scores cost
    D^2 + N D instead of two full projections; the class token's weight is exactly 1 unless
    `literal_class_weight`; a model without class token uses its mean patch in place of it, and weighs the average
    pooling by beta(T) while training, so that it tends to what inference computes.

    Attributes:
      keep_rate: share of patches kept at each location; a float or one per location.
      locations: 1-based layers after which patches are dropped.
      temperature: U of equation (7).
      t_base: the 1-based layer whose output lives are predicted from; None: the first location.
      budgets: patches computed per layer n_1..n_T, in place of keep_rate and locations.
      predictor_init, predictor_scale: initial W: "normal", "identity" or "negative_identity", times the scale; None:
        0.02, and 0 beside coverage, which training then starts from.
      literal_class_weight: use sigmoid(U (T - t)) as the weight of prefix tokens, as the paper prints.
      stop_gradient: predict lives from tokens through which no gradient flows back into the backbone.
      hard: training masks exactly the patches that inference drops, with the gradient of the soft weights
        (straight-through), so that training sees what will be computed. Not in the paper.
      train_tokens: with `hard`: "all", masks on all patches; "kept", training computes what inference computes. The
        weight of a kept patch is 1 with the gradient of the soft one, so that lives learn from the kept patches: those
        among them that help live longer. Not in the paper.
      sampled_dropped: with "kept": so many of the patches dropped at a location, drawn anew for every image, go on up
        to the next one as masked patches do, with the gradient of all that are dropped there. Not in the paper.
      sampled_rates: training draws the keep rate of every image anew from these, in place of keep_rate. Not in the
        paper.
      predictor_eps: of the predictor's layer norm.
      lives: "learned", the paper's predictor; "coverage", from the rank in farthest-point order of the patch tokens
        after layer t_base, without any parameter; "both", the standardised rank plus s / D. The order begins with the
        patch of highest class attention in layer t_base, without class token with the one most like the mean patch.
        The last two are not in the paper.
      coverage_order: "greedy", the definition, one patch after the other: N dependent steps, which an accelerator is
        slow at; "parallel", two passes over all pairs (`ops.coverage.parallel_ranks`); "auto", greedy up to 64 patches.
      squeeze, squeeze_temperature: what becomes of the dead, see `Dropping`. Not in the paper.
    """

    method = "life_regression"
    facts = Facts(
        source="Chen et al., Life Regression based Patch Slimming",
        cost="D² + N D once",
        learns="D² + 2 D",
        training="soft weights on all patches, masks, or as at inference",
        where="after",
    )
    untrained = ({"lives": "coverage", "squeeze": "mean"},)
    in_place_of_keep_rate = ("budgets",)
    score_name = "life"
    predicts_lives = True
    where = "after"
    of = "left"
    trains_on_all = True

    temperature: Positive = 1.5
    t_base: Count | None = None
    budgets: tuple[Count, ...] | None = None
    predictor_init: Literal["normal", "identity", "negative_identity"] = "normal"
    predictor_scale: float | None = None
    literal_class_weight: bool = False
    stop_gradient: bool = False
    hard: bool = False
    train_tokens: Literal["all", "kept"] = "all"
    sampled_dropped: Natural = 0
    sampled_rates: tuple[Share, ...] = ()
    predictor_eps: Positive = 1e-6
    lives: Literal["learned", "coverage", "both"] = "learned"
    coverage_order: Literal["auto", "parallel", "greedy"] = "auto"

    def check_options(self) -> None:
        super().check_options()
        if self.sampled_rates and self.budgets is not None:
            raise SlimError(
                f"sampled_rates={self.sampled_rates!r} are keep rates at `locations`; budgets fix the counts"
            )
        if self.budgets is not None:
            check_budgets(self.budgets)
        if self.train_tokens == "kept" and (self.sampled_rates or not self.hard):
            why = "budgets differ between images" if self.sampled_rates else "what is dropped has no soft weight"
            need = "no sampled_rates" if self.sampled_rates else "hard=True"
            raise SlimError(f"train_tokens='kept' needs {need}: {why}")
        if self.sampled_dropped and (self.train_tokens == "all" or self.lives == "coverage"):
            raise SlimError(
                f"sampled_dropped={self.sampled_dropped} needs train_tokens='kept' and lives that learn, not"
                f" train_tokens={self.train_tokens!r} with lives={self.lives!r}"
            )
        if self.lives == "coverage" and self.predictor_scale is not None:
            raise SlimError(f"predictor_scale={self.predictor_scale}: lives='coverage' has no predictor")
        if self.lives == "learned" and self.coverage_order != "auto":
            raise SlimError(f"coverage_order={self.coverage_order!r}: lives='learned' has no coverage")

    def check_geometry(self, geometry: Geometry) -> None:
        if self.budgets is not None:
            check_budgets(self.budgets, geometry)
        else:
            super().check_geometry(geometry)
        if self.base > geometry.depth:
            raise SlimError(f"t_base={self.t_base!r} must lie in 1..{geometry.depth}")
        if min(self.counts[: self.base]) < geometry.num_patches:
            raise SlimError(
                f"t_base={self.base}: patches are dropped before it, budgets {self.counts}; lives are predicted from"
                f" the output of layer t_base, so layers 1..t_base must compute all {geometry.num_patches} patches"
            )

    @property
    def counts(self) -> tuple[int, ...]:
        """Patches computed per layer, n_1..n_T."""
        return self.budgets if self.budgets is not None else self._counts_at(self.keep_rate)

    def _counts_at(self, keep_rate: float | tuple[float, ...]) -> tuple[int, ...]:
        return Schedule(keep_rate, self.locations, self.where, self.of).plan(self.bound).attention

    def at_counts(self, counts: Sequence[int]) -> dict[str, Any]:
        fixed = {} if self.t_base is None and self.lives == "coverage" else {"t_base": self.base}
        rates: dict[str, Any] = {"sampled_rates": ()} if self.sampled_rates else {}
        return {"budgets": (self.bound.num_patches, *counts[:-1]), **fixed, **rates}

    def fewest(self, layer: int, patches: int) -> int:
        learned = self.t_base is not None or self.lives != "coverage"  # weights for the tokens of one layer
        return patches if layer == self.bound.depth or (learned and layer < self.base) else 1

    @property
    def base(self) -> int:
        """t_base, 1-based."""
        if self.t_base is not None:
            return self.t_base
        if self.budgets is None:
            return self.locations[0]
        full = sum(n == self.budgets[0] for n in self.budgets)
        return full if full < len(self.budgets) else min(4, len(self.budgets))

    @property
    def dropping_plan(self) -> Plan:
        return Plan(self.counts, self.counts)

    @property
    def train_plan(self) -> Plan:
        if not self._really_drops(train=True):
            return super().train_plan
        counts = tuple(n + self._sampled(n) for n in self.counts)
        plan, back = Plan(counts, counts), self.rejoins_at
        return plan if back is None else plan.full_from(back, self.bound.num_patches)

    def extra_flops(self) -> dict[int, int]:
        dim, n, cost = self.bound.dim, self.bound.num_patches, 0
        if self.lives != "coverage":
            cost += dim * dim + n * dim
        if self.lives != "learned":
            cost += n * n * dim + (self.bound.prefix_tokens + n) * dim
        return self.with_squeeze_flops({self.base: cost})

    def paper_flops(self) -> dict[int, int]:
        return {self.base: 2 * self.bound.num_patches * self.bound.dim**2}  # two full projections

    @property
    def score_range(self) -> tuple[float, float]:
        return float(self.base), float(self.bound.depth)

    @property
    def trained_rates(self) -> tuple[float, ...]:
        return tuple(self.sampled_rates)

    def setup(self) -> None:
        if self.lives != "coverage":
            default = 0.02 if self.lives == "learned" else 0.0
            scale = default if self.predictor_scale is None else self.predictor_scale
            self.life_predictor = LifePredictor(self.predictor_eps, self.predictor_init, scale)

    def _really_drops(self, train: bool) -> bool:
        """Masks are for what learns: an order without parameters needs none, unless budgets differ between images."""
        unlearned = self.lives == "coverage" or self.train_tokens == "kept"
        return not train or (self.hard and unlearned and not self.sampled_rates)

    def _dropped(self, left: int) -> int:
        """How many patches the drop to `left` drops."""
        return min((n for n in self.counts if n > left), default=left) - left

    def _sampled(self, left: int) -> int:
        """How many of them training goes on with."""
        return min(self.sampled_dropped, self._dropped(left))

    def needs(self, layer: int, train: bool) -> tuple[str, ...]:
        first = layer == self.base and self.lives != "learned" and self.bound.class_token
        return ("class_attention",) if first else ()

    def after_attention(self, tokens: Tokens, layer: int, probe: Probe, train: bool) -> Tokens:
        if "class_attention" not in probe:
            return tokens
        return tokens.remember(class_attention=probe["class_attention"].mean(axis=1)[:, tokens.prefix :])

    def scores(self, tokens: Tokens) -> Array:
        """(B, N) float32 scores s of equation (2), from the tokens after layer t_base."""
        given = tokens.memory.get("given_scores")
        if given is not None and not self.is_initializing():
            return given
        source = tokens.replace(x=jax.lax.stop_gradient(tokens.x)) if self.stop_gradient else tokens
        if self.lives == "learned":
            return self.life_predictor(source, self.bound.class_token)
        covered = coverage.standard_ranks(self._ranks(tokens))
        if self.lives == "coverage":
            return covered
        return covered + self.life_predictor(source, self.bound.class_token) / self.bound.dim

    def _ranks(self, tokens: Tokens) -> Array:
        patches = tokens.patches.astype(jnp.float32)
        first = tokens.memory.get("class_attention")
        if first is None:
            first = coverage.centrality(patches)
        chosen = select.first_highest(first, axis=1)[0]
        few = self.bound.num_patches <= FEW_PATCHES
        if self.coverage_order == "greedy" or (self.coverage_order == "auto" and few):
            return coverage.greedy_ranks(patches, chosen)
        return coverage.parallel_ranks(patches, chosen, self.bound.grid)

    def after_block(self, tokens: Tokens, layer: int, train: bool) -> Tokens:
        if layer != self.base:
            return tokens
        scores = self.scores(tokens)
        counts, mean, std = self._budgets(scores, train)
        lives = life.normalise_lives(scores, mean, std)
        tokens = tokens.remember(scores=lives)
        if not self._really_drops(train):
            if self.hard:
                ranks = select.argsort(select.top(lives, lives.shape[1]))
                tokens = tokens.remember(ranks=ranks, counts=counts)
            return tokens
        if self.counts[-1] == self.bound.num_patches or layer == self.bound.depth:
            return tokens
        return self._leave(tokens, self.counts[layer], train, lives)  # the one sort

    def _leave(self, tokens: Tokens, left: int, train: bool, lives: Array | None = None) -> Tokens:
        """`drop`; in training with some of the dropped behind those that are kept."""
        sampled, dropped = self._sampled(left) if train else 0, self._dropped(left)
        if not sampled:
            return self.drop(tokens, left, lives)
        n = left + dropped
        tokens = tokens.first(n) if lives is None else tokens.take(select.top(lives, n))
        drawn = select.top(jax.random.uniform(self.make_rng("dropout"), (len(tokens.x), dropped)), sampled)
        kept = jnp.broadcast_to(jnp.arange(left, dtype=jnp.int32), (len(tokens.x), left))
        held = tokens.take(jnp.concatenate([kept, left + drawn], axis=1))
        leaving, staying = np.arange(n)[None] >= left, np.arange(left + sampled)[None] < left
        held = self.absorb(held, tokens, jnp.float32(leaving), jnp.float32(staying))
        return held.replace(kept=(*tokens.kept, held.origin[:, :left]))

    def _budgets(self, scores: Array, train: bool) -> tuple[Any, Any, Any]:
        """n_1..n_T, mu and sigma: one row for all images, or one for each where training draws their keep rates."""
        if not (train and self.sampled_rates) or self.is_initializing():
            return np.asarray([self.counts]), *life.life_moments(self.counts)
        choices = [self._counts_at(rate) for rate in self.sampled_rates]
        chosen = jax.random.randint(self.make_rng("dropout"), (len(scores),), 0, len(choices))
        moments = jnp.asarray([life.life_moments(counts) for counts in choices], jnp.float32)[chosen]
        return jnp.asarray(choices)[chosen], moments[:, :1], moments[:, 1:]

    def before_block(self, tokens: Tokens, layer: int, train: bool) -> Tokens:
        if layer <= self.base or self.has_rejoined(layer):
            return tokens
        if self._really_drops(train):
            if layer > self.base + 1 and self.counts[layer - 1] < self.counts[layer - 2]:
                tokens = self._leave(tokens, self.counts[layer - 1], train)
            return self._learning(tokens, layer) if train and self.lives != "coverage" else tokens
        if not self.hard:
            return tokens.replace(log_weight=self._log_weight(tokens, layer))
        soft = jnp.exp(life.log_weight(tokens.memory["scores"], layer, self.temperature))
        before, held = (
            (tokens.memory["ranks"] < tokens.memory["counts"][:, t, None]).astype(jnp.float32)
            for t in (layer - 2, layer - 1)
        )
        if self.sampled_rates or self.counts[layer - 1] < self.counts[layer - 2]:
            tokens = self.absorb(tokens, tokens, before - held, held)
        return tokens.replace(policy=tokens.per_token(select.straight_through(held, soft), 1.0))

    def _learning(self, tokens: Tokens, layer: int) -> Tokens:
        """Weights 1 of the kept and 0 of those that were sampled, with the gradient of the soft ones."""
        left = self.counts[layer - 1]
        soft = jnp.exp(life.log_weight(select.gather(tokens.memory["scores"], tokens.origin), layer, self.temperature))
        held = jnp.asarray(np.arange(tokens.n) < left, jnp.float32)
        if tokens.n > left:
            soft = soft * jnp.where(held > 0, 1.0, self._dropped(left) / (tokens.n - left))
        return tokens.replace(policy=tokens.per_token(select.straight_through(held, soft), 1.0))

    def finish(self, tokens: Tokens, train: bool) -> Tokens:
        left = self.counts[-1]
        sampled = train and self._sampled(left) and not self.has_rejoined(self.bound.depth)
        return tokens.first(left) if sampled else tokens

    def _log_weight(self, tokens: Tokens, layer: int) -> Array:
        patches = life.log_weight(tokens.memory["scores"], layer, self.temperature)
        lifetime = self.temperature * (self.bound.depth - layer)
        return tokens.per_token(patches, -math.log1p(math.exp(-lifetime)) if self.literal_class_weight else 0.0)

    def pooling_weights(self, tokens: Tokens, train: bool) -> Array | None:
        if tokens.policy is not None:
            held = tokens.policy[:, tokens.prefix :] * tokens.patch_sizes
            return held / held.sum(axis=1, keepdims=True)
        if tokens.log_weight is None:
            return super().pooling_weights(tokens, train)
        return jax.nn.softmax(tokens.log_weight[:, tokens.prefix :], axis=1)
