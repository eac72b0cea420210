"""A-ViT (Yin et al. 2022): every token adds up halting scores and stops being computed when they reach one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from slimvit_jax import losses as loss_functions
from slimvit_jax.errors import SlimError
from slimvit_jax.facts import Facts
from slimvit_jax.losses import Targets
from slimvit_jax.methods.ranking import ranking
from slimvit_jax.ops import select
from slimvit_jax.options import Count, Positive, Range
from slimvit_jax.plan import Geometry, Plan, check_budgets
from slimvit_jax.slimming import Slimming
from slimvit_jax.tokens import Aux, Tokens

HALTED = -1000.0  # added to the attention logits of a halted key; exp() of it is an exact float32 zero


def target_distribution(depth: int, centre: int, spread: float = 1.0) -> np.ndarray:
    """The prior over halting layers: a normal density on 0..T-1 around `centre`, scaled as the release does.

    The scale makes the first `centre` entries sum to 0.98, so that the whole sums to more than one (3.26 for 12, 8).

    Returns:
      (T,) float64.
    """
    layers = np.arange(depth)
    density = np.exp(-0.5 * ((layers - centre) / spread) ** 2) / (spread * math.sqrt(2 * math.pi))
    return density * 0.98 / density[:centre].sum()


def layer_scores(halting: Array, kind: str, mask: Array | None = None) -> Array:
    """The mean halting score of every layer.

    Args:
      halting: (T, B, P + N) scores, the halted tokens' included.
      kind: "official" leaves out the first image of the batch, as the release's slice does by mistake, unless it is
        the only one; "all" takes every token of every image.
      mask: of `Targets`; the first image is the first that counts.

    Returns:
      (T,) float32.
    """
    counted = jnp.ones(halting.shape[1]) if mask is None else (mask > 0).astype(jnp.float32)
    if kind == "official":
        others = counted.at[jnp.argmax(counted)].set(0.0)
        counted = jnp.where(others.sum() > 0, others, counted)
    return loss_functions.mean(halting.mean(axis=2), counted)


def distribution_prior(scores: Array, target: np.ndarray) -> Array:
    """KL(target || scores / sum scores) / T; zero where it would be negative, as the release adds it only if positive.

    Args:
      scores: (T,) of `layer_scores`.
      target: (T,) of `target_distribution`.
    """
    share = jnp.clip(scores / jnp.maximum(scores.sum(), jnp.finfo(jnp.float32).tiny), 0.01, 0.99)
    entropy = float(np.sum(target * np.log(np.where(target > 0, target, 1.0))))
    divergence = entropy - (jnp.asarray(target, jnp.float32) * jnp.log(share)).sum()
    return jnp.maximum(divergence / len(target), 0.0)


class AViT(Slimming, kw_only=True):
    """Halting scores from the first channel; no parameter of its own.

        h_l = sigmoid(gate_scale * x_l[..., 0] - gate_center)      after layer l, class token included; h_T := 1
        c  += h_l;   a token computed in layer l with c > 1 - eps halts there
        out = sum_l p_l x_l,  p_l = h_l before the halting layer and the remainder R = 1 - sum of those in it
        logits = head(norm(out)_cls);   ponder cost rho = layers computed + R

    A halted token is zero from the next layer on, both branches of it get zero as their normalised input, and its key
    has -1000 added. Official: timm/models/act_vision_transformer.py, engine_act.py. Losses: the mean of rho over images
    and tokens ("ponder"), and the divergence of the layers' mean scores from a normal prior around a layer
    ("distribution_prior"). The defaults are the release's for DeiT-T; gate_center is 75 there for DeiT-S.

    Inference: with `budgets` None masked, exactly as published: nothing gets cheaper. With `budgets`, layer l computes
    the budgets[l-1] patches with the smallest c (halted ones have the largest, so they go first); one that is cut while
    still running halts there and then, its remainder going to its last state. Where no running patch is cut the result
    is the masked one. The prefix tokens halt too but are never removed. Training is masked in both cases.

    Deviations: in place of the release's fixed 12 layers any depth, with the prior around `prior_center`; the release's
    layer score leaves out the first image of the batch (NaN for one image): kept as layer_score="official", but a batch
    of one is then used whole; "all" repairs it. Cost: the weighted sum, (P + n) D per layer.

    aux.taps: "halting_scores" and "active_masks", (B, P + n) of every layer; "rho" and "counter", (B, P + N), raster
    order. aux.scores is rho of the patches.

    Attributes:
      gate_scale, gate_center: of the halting score.
      budgets: patches computed per layer, n_1..n_T, at inference.
      halting_eps: eps above; a token halts when its scores exceed 1 - eps.
      prior_center: 0-based layer at the centre of the prior; None: 8 of 12 layers, in proportion for other depths.
      layer_score: "official" or "all", see `layer_scores`.
    """

    method = "avit"
    score_name = "layers computed"
    facts = Facts(
        source="Yin et al. 2022, NVlabs/A-ViT",
        cost="(P + n) D per layer",
        training="masked",
        shapes="static; masked without budgets",
        grid="kept; dropped with budgets",
        where="after, every layer",
    )
    trains_on_all = True
    keep_all_is_dense: ClassVar[bool] = False  # full budgets still halt; a large gate_center is what makes it dense
    loss_weights: ClassVar[Mapping[str, float]] = {"classification": 1.0, "ponder": 5e-4, "distribution_prior": 1e-3}

    gate_scale: Positive = 10.0
    gate_center: float = 30.0
    budgets: tuple[Count, ...] | None = None
    halting_eps: Annotated[float, Range(above=0, below=1)] = 0.01
    prior_center: Count | None = None
    layer_score: Literal["official", "all"] = "official"

    def check_options(self) -> None:
        if self.budgets is not None:
            check_budgets(self.budgets)

    def check_geometry(self, geometry: Geometry) -> None:
        super().check_geometry(geometry)
        if self.budgets is not None:
            check_budgets(self.budgets, geometry)
        if self.prior_center is not None and self.prior_center > geometry.depth:
            raise SlimError(f"prior_center={self.prior_center} must be a whole number in 1..{geometry.depth}")

    @property
    def centre(self) -> int:
        """The 0-based layer at the centre of the prior."""
        return self.prior_center if self.prior_center is not None else max(1, round(self.bound.depth * 2 / 3))

    @property
    def plan(self) -> Plan:
        return super().plan if self.budgets is None else Plan(self.budgets, self.budgets)

    def extra_flops(self) -> dict[int, int]:
        sizes = enumerate(self.plan.attention, start=1)
        return {layer: (self.bound.prefix_tokens + n) * self.bound.dim for layer, n in sizes}

    def start(self, tokens: Tokens, train: bool) -> Tokens:
        zero = jnp.zeros(tokens.x.shape[:2], jnp.float32)
        state = {"halted": zero, "remainder": zero + 1.0, "rho": zero, "counter": zero}
        return tokens.remember(**state, out=jnp.zeros(tokens.x.shape, jnp.float32), parked=())

    def before_block(self, tokens: Tokens, layer: int, train: bool) -> Tokens:
        if layer == 1:
            return tokens
        if not train and self.plan.attention[layer - 1] < tokens.n:
            tokens = self._cut(tokens, self.plan.attention[layer - 1])
        mask = self._active(tokens)
        x = tokens.x * mask[..., None].astype(tokens.x.dtype)
        return tokens.replace(x=x, input_mask=mask, log_weight=HALTED * (1.0 - mask))

    def after_block(self, tokens: Tokens, layer: int, train: bool) -> Tokens:
        state, active = tokens.memory, self._active(tokens)
        x = tokens.x.astype(jnp.float32)
        gate = jax.nn.sigmoid(self.gate_scale * x[..., 0] - self.gate_center)
        tokens = tokens.tap("halting_scores", gate).tap("active_masks", active)
        gate = jnp.ones_like(gate) if layer == self.bound.depth else gate
        total = state["halted"] + gate
        stops = active * (total > 1.0 - self.halting_eps)
        goes_on = (total < 1.0 - self.halting_eps).astype(jnp.float32)
        weight = stops * state["remainder"] + goes_on * gate
        return tokens.remember(
            halted=total,
            remainder=state["remainder"] - goes_on * gate,
            rho=state["rho"] + active + stops * state["remainder"],
            counter=state["counter"] + active,
            out=state["out"] + weight[..., None] * x,
        )

    def finish(self, tokens: Tokens, train: bool) -> Tokens:
        state = tokens.memory
        groups = [(tokens.origin, state), *state["parked"]]
        prefix, order = tokens.prefix, jnp.concatenate([origin for origin, _ in groups], axis=1)

        def whole(name: str) -> Array:
            patches = [s[name][:, prefix if s is state else 0 :] for _, s in groups]
            held = patches[0] if len(groups) == 1 else select.raster_order(jnp.concatenate(patches, axis=1), order)
            return jnp.concatenate([state[name][:, :prefix], held], axis=1)

        rho, counter = whole("rho"), whole("counter")
        origin = jnp.broadcast_to(jnp.arange(order.shape[1], dtype=jnp.int32), order.shape)
        tokens = tokens.replace(x=whole("out").astype(tokens.x.dtype), origin=origin, input_mask=None, log_weight=None)
        tokens = tokens.replace(taps={**tokens.taps, "rho": rho, "counter": counter.astype(jnp.int32)})
        return tokens.remember(scores=rho[:, prefix:])

    def loss_terms(self, logits: Array, aux: Aux, targets: Targets) -> dict[str, Array]:
        scores = layer_scores(jnp.stack(aux.taps["halting_scores"]), self.layer_score, targets.mask)
        prior = distribution_prior(scores, target_distribution(self.bound.depth, self.centre))
        return {
            "classification": loss_functions.classification(logits, aux.taps, targets),
            "ponder": aux.taps["rho"].mean(axis=1),
            "distribution_prior": loss_functions.of_the_batch(prior, logits),
        }

    def _active(self, tokens: Tokens) -> Array:
        """(B, P + n) float32, 1 for the tokens still computed."""
        return (tokens.memory["halted"] < 1.0 - self.halting_eps).astype(jnp.float32)

    def _cut(self, tokens: Tokens, left: int) -> Tokens:
        """Only the `left` patches with most left to say; what the others have added up is parked until the end."""
        state, prefix = tokens.memory, tokens.prefix
        order = select.top(ranking(tokens, -state["halted"][:, prefix:]), tokens.n)
        names = ("halted", "remainder", "rho", "counter", "out")
        patches = {name: select.gather(state[name][:, prefix:], order) for name in names}
        gone = {name: value[:, left:] for name, value in patches.items()}
        # A running patch that is cut halts in the layer it has just left: the rest of its weight goes to that state.
        rest = gone["remainder"] * (gone["halted"] < 1.0 - self.halting_eps)
        states = select.gather(tokens.patches, order[:, left:]).astype(jnp.float32)
        gone = {"rho": gone["rho"] + rest, "counter": gone["counter"], "out": gone["out"] + rest[..., None] * states}
        origin = select.gather(tokens.origin, order[:, left:])
        held = {name: jnp.concatenate([state[name][:, :prefix], patches[name][:, :left]], axis=1) for name in names}
        return tokens.take(order[:, :left]).remember(**held, parked=(*state["parked"], (origin, gone)))
