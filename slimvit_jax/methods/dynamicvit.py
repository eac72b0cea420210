"""DynamicViT (Rao et al. 2021): small predictors decide, stage by stage, which patches to keep."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from slimvit_jax import losses as loss_functions
from slimvit_jax.facts import Facts
from slimvit_jax.layers import LayerNorm, Linear
from slimvit_jax.losses import Targets
from slimvit_jax.methods.dropping import Dropping
from slimvit_jax.methods.located import Located
from slimvit_jax.methods.ranking import noted, ranking
from slimvit_jax.ops import elementwise, select
from slimvit_jax.options import Positive, Share
from slimvit_jax.plan import Schedule
from slimvit_jax.tokens import Aux, Tokens


class Predictor(nn.Module):
    """log (p_keep, p_drop) of every patch from a local half and a global half of its channels (PredictorLG).

    Attributes:
      dim: D.
    """

    dim: int

    @nn.compact
    def __call__(self, patches: Array, decision: Array | None) -> Array:
        """(B, n, D) patches, (B, n) of them kept so far or None for all: (B, n, 2) float32 log probabilities."""
        half, quarter = self.dim // 2, self.dim // 4
        dtype = patches.dtype  # products in the backbone's compute type
        dense = functools.partial(Linear, dtype=dtype)
        y = elementwise.gelu(dense(self.dim, name="in_conv_1")(LayerNorm(1e-5, dtype, name="in_conv_0")(patches)))
        local, shared = y[..., :half], _kept_mean(y[..., half:], decision)
        y = jnp.concatenate([local, jnp.broadcast_to(shared, (*y.shape[:2], self.dim - half))], axis=-1)
        y = elementwise.gelu(dense(half, name="out_conv_0")(y))
        y = elementwise.gelu(dense(quarter, name="out_conv_2")(y))
        return jax.nn.log_softmax(dense(2, name="out_conv_4")(y).astype(jnp.float32))


def _kept_mean(values: Array, decision: Array | None) -> Array:
    """(B, 1, C): the mean of the kept tokens; zero where an image keeps none (the release divides by zero there)."""
    if decision is None:
        return values.mean(axis=1, keepdims=True)
    weights = decision.astype(jnp.float32)
    total = weights.sum(axis=1)
    total = jnp.where(total > 0.5, total, 1.0)  # straight-through zeros are zero up to rounding only
    summed = jnp.einsum("bn,bnc->bc", weights, values.astype(jnp.float32))
    return (summed / total[:, None])[:, None].astype(values.dtype)


class DynamicViT(Dropping, Located, kw_only=True):
    """A predictor in front of each location scores the patches; training masks, inference gathers.

        inference:  kept at the k-th location: the int(rho_k N) patches of highest log p_keep, rho_k = r^k
        training:   D <- D * GumbelSoftmax(log p)_keep, one-hot with the gradient of the soft sample, D = 1 at the start
                    attention_ij ~ exp(a_ij) G_ij,  G_ij = D_j, and 1 for j = i
        loss:       classification + 2 ratio + 0.5 distillation + 0.5 token_distillation, where
                    ratio = 1/S sum_s mean_b (mean_n D_s - rho_s)^2

    "At layer t" means before layer t, on its input; locations (4, 7, 10) are the official blocks 3, 6, 9. Official:
    models/dyvit.py, losses.py (DistillDiffPruningLoss_dynamic). While training every layer, those in front of the first
    location included, uses the masked softmax with its smoothing, and no token is removed.

    Deviations: N is the grid's, not a fixed 196; where an image has dropped every patch the predictor's global half is
    zero (NaN in the release), and such an image counts for nothing in the token term; the ratio loss is divided by the
    number of stages here, not by its caller; several prefix tokens are always kept. Without a teacher the two
    distillation losses are left out. Cost per location, on the n patches before it: n (3/2 D^2 + D^2/8 + D/2).

    Attributes:
      keep_rate: share kept at each location of what the location before left; a float or one per location.
      locations: 1-based layers in front of which patches are dropped.
      token_ratio: the shares rho_k of the original patches left at each location, in place of keep_rate.
      gumbel: sample while training; False takes the more probable choice, without noise.
      temperature: of the Gumbel-softmax.
      token_loss: token distillation as "mse" or "kl".
      dynamic: the ratio loss looks at the mean over the batch instead of at every image.
      squeeze, squeeze_temperature: what becomes of the dropped, see `Dropping`; True is dTPS.
    """

    method = "dynamicvit"
    score_name = "log probability of keeping"
    facts = Facts(
        source="Rao et al. 2021, raoyongming/DynamicViT",
        cost="n (3/2 D² + D²/8 + D/2) per location",
        learns="3 predictors",
        training="masked, with a teacher",
        where="before",
    )
    in_place_of_keep_rate = ("token_ratio",)
    where = "before"
    trains_on_all = True
    needs_teacher = True
    loss_weights: ClassVar[Mapping[str, float]] = {
        "classification": 1.0,
        "ratio": 2.0,
        "distillation": 0.5,
        "token_distillation": 0.5,
    }

    token_ratio: tuple[Share, ...] | None = None
    gumbel: bool = True
    temperature: Positive = 1.0
    token_loss: Literal["mse", "kl"] = "mse"
    dynamic: bool = False

    @property
    def learns_places(self) -> bool:
        return True

    @property
    def schedule(self) -> Schedule:
        return Schedule(self.keep_rate, self.locations, self.where, self.of, self.token_ratio)

    def extra_flops(self) -> dict[int, int]:
        dim = self.bound.dim
        half, quarter = dim // 2, dim // 4
        per_patch = dim * dim + dim * half + half * quarter + 2 * quarter
        own = {layer: n * per_patch for layer, (n, left) in self.before_and_after.items() if left < n}
        return self.with_squeeze_flops(own)

    def setup(self) -> None:
        self.score_predictor = [Predictor(self.bound.dim) for _ in self.locations]

    def start(self, tokens: Tokens, train: bool) -> Tokens:
        if not train:
            return tokens
        everyone = jnp.ones(tokens.x.shape[:2], jnp.float32)
        return tokens.replace(policy=everyone).remember(decision=everyone[:, tokens.prefix :])

    def before_block(self, tokens: Tokens, layer: int, train: bool) -> Tokens:
        if layer not in self.locations:
            return tokens
        predict = self.score_predictor[self.locations.index(layer)]
        if train:
            return self._mask(tokens, predict(tokens.patches, tokens.memory["decision"]))
        left = self.plan.attention[layer - 1]
        if left == tokens.n:
            return tokens
        keep = predict(tokens.patches, None)[..., 0]
        tokens = noted(tokens, keep).tap("keep_scores", keep)
        return self.drop(tokens, left, ranking(tokens, keep))

    def _mask(self, tokens: Tokens, log_probabilities: Array) -> Tokens:
        before = tokens.memory["decision"]
        keep = self._sample(log_probabilities)[..., 0] * before
        tokens = self.absorb(tokens, tokens, before - keep, keep)
        tokens = noted(tokens, log_probabilities[..., 0]).remember(decision=keep)
        tokens = tokens.replace(policy=tokens.per_token(keep, 1.0))
        return tokens.tap("decisions", keep).tap("log_probabilities", log_probabilities)

    def _sample(self, log_probabilities: Array) -> Array:
        """One-hot (B, n, 2) with the gradient of the relaxed sample."""
        if self.gumbel and not self.is_initializing():
            noise = jax.random.gumbel(self.make_rng("dropout"), log_probabilities.shape, jnp.float32)
            log_probabilities = log_probabilities + noise
        soft = jax.nn.softmax(log_probabilities / self.temperature)
        hard = jax.nn.one_hot(jnp.argmax(soft, axis=-1), 2, dtype=soft.dtype)
        return select.straight_through(hard, soft)

    def loss_terms(self, logits: Array, aux: Aux, targets: Targets) -> dict[str, Array]:
        decisions = aux.taps["decisions"]
        losses = {
            "classification": loss_functions.classification(logits, aux.taps, targets),
            "ratio": loss_functions.keep_ratio(decisions, self.schedule.shares, not self.dynamic, targets.mask),
        }
        if targets.teacher is None:
            return losses
        teacher_logits, teacher_aux = targets.teacher
        n = self.bound.num_patches
        losses["distillation"] = loss_functions.distillation(logits, teacher_logits)
        losses["token_distillation"] = loss_functions.token_distillation(
            aux.features[:, -n:], teacher_aux.features[:, -n:], decisions[-1], self.token_loss, targets.mask
        )
        return losses
