"""SiT (Zong et al. 2022): tokens are softly aggregated into fewer, and distillation restores what they were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from slimvit_jax import grid
from slimvit_jax import losses as loss_functions
from slimvit_jax.errors import SlimError
from slimvit_jax.facts import Facts
from slimvit_jax.layers import LayerNorm, Linear, Mlp
from slimvit_jax.losses import Targets
from slimvit_jax.methods.located import Located
from slimvit_jax.ops import elementwise
from slimvit_jax.options import Count, Share
from slimvit_jax.plan import Geometry, Schedule
from slimvit_jax.tokens import Aux, Tokens


def aggregate(weights: Array, patches: Array) -> Array:
    """A^T x: every output token a convex combination of the input tokens.

    Args:
      weights: (B, n, k) float32, each column summing to 1.
      patches: (B, n, D).

    Returns:
      (B, k, D) in the type of `patches`.
    """
    mixed = jnp.einsum("bnk,bnd->bkd", weights.astype(patches.dtype), patches, preferred_element_type=jnp.float32)
    return mixed.astype(patches.dtype)


def token_recovery(recovered: Sequence[Array], teacher: Sequence[Array]) -> Array:
    """The mean over the layers of the squared error between recovered tokens and the teacher's.

    Args:
      recovered: (B, N, D) per layer.
      teacher: the same; no gradient flows into it.

    Returns:
      (B,) float32.
    """
    wide = lambda tokens: tokens.astype(jnp.float32)
    pairs = zip(recovered, teacher, strict=True)
    errors = [jnp.square(wide(ours) - wide(jax.lax.stop_gradient(theirs))).mean(axis=(1, 2)) for ours, theirs in pairs]
    return jnp.stack(errors).mean(axis=0)


class TokenSlimming(nn.Module):
    """TSM: (B, n, D) tokens to the (B, n, k) weights of the k tokens they become.

    Attributes:
      outputs: k.
    """

    outputs: int

    @nn.compact
    def __call__(self, patches: Array) -> Array:
        dim, dtype = patches.shape[-1], patches.dtype
        scale = self.param("scale", nn.initializers.ones, (1, 1, 1), jnp.float32)
        y = Linear(dim // 2, dtype=dtype, name="weight_1")(LayerNorm(1e-5, dtype, name="weight_0")(patches))
        y = Linear(self.outputs, dtype=dtype, name="weight_3")(elementwise.gelu(y))
        return jax.nn.softmax(scale * y.astype(jnp.float32), axis=1)


class TokenRecovery(nn.Module):
    """RTSM: (B, k, D) tokens to (B, N, D), by an MLP over the tokens and one, residual, over the channels.

    Attributes:
      num_patches: N.
      dim: D.
    """

    num_patches: int
    dim: int
    dtype: Any

    def setup(self) -> None:
        self.norm1, self.norm2 = LayerNorm(1e-5, self.dtype), LayerNorm(1e-5, self.dtype)
        self.mlp1 = Mlp(4 * self.num_patches, self.num_patches, dtype=self.dtype)
        self.mlp2 = Mlp(4 * self.dim, self.dim, dtype=self.dtype)

    def __call__(self, patches: Array) -> Array:
        x = self.mlp1(self.norm1(patches).swapaxes(1, 2), False).swapaxes(1, 2)
        return x + self.mlp2(self.norm2(x), False)


class SiT(Located, kw_only=True):
    """Patches are merged by learned weights at the end of a stage; training asks them to be recoverable.

        TSM:   A = softmax over the n tokens of scale * (GELU(LN(x) W1) W2),  tokens' = A^T x,  n' = int(N r^stage)
        RTSM:  y = MLP_tokens(LN x),  recovered = y + MLP_channels(LN y)        training only
        loss:  classification + 2 token_distillation + 2 distillation, where
               token_distillation = mean over the layers of MSE(recovered tokens, teacher's tokens)
               distillation = KL(teacher || student) of the predictions, temperature 1

    "At layer t" means after layer t has run: with locations (4, 7, 10) the layers 1-4 compute N patches. Blocks per
    stage say the same: stage_blocks (4, 3, 3, 2). Prefix tokens bypass both modules. Every layer from the first
    location on has an RTSM of its own; before it tokens count as they are. The network goes on with the slimmed tokens.
    The teacher is the frozen dense model of the same depth, width and grid. RTSM parameters learn at 5 times the
    rate of the rest (`parameter_rates`). Official: models/lvvit.py, losses.py of Sense-X/SiT; there on LV-ViT.

    A model with a distillation token (the release's conv_distillation, which crashes there) learns from its labeller
    too: then the class token's head alone is trained and compared with the teacher, and the other head learns the
    labeller's most probable class ("hard_distillation", weight 1; `Backbone.losses`).

    Deviations: without a labeller the mean of both heads is trained and compared; without a teacher the two
    distillation losses are left out. A keep rate of 1 still mixes the tokens: it is not the dense model. Cost per
    location, from n to k tokens: n (D^2/2 + k D/2 + k D).

    aux.taps: "assignments", (B, n, k) per location, and in training "recovered", (B, N, D) of every layer. aux.scores
    is the share of each patch in the last tokens, (B, N), summing to 1.

    Attributes:
      keep_rate: share kept at each location of what the location before left; a float or one per location.
      locations: 1-based layers after which tokens are slimmed.
      stage_blocks: layers per stage, in place of locations.
    """

    method = "sit"
    any_budget = False
    score_name = "share in the last tokens"
    facts = Facts(
        source="Zong et al. 2022, Sense-X/SiT",
        cost="n (D²/2 + m D/2 + m D) per location",
        learns="merging and recovery modules",
        training="with a teacher",
        grid="merged",
        where="after",
    )
    merges = True
    keep_all_is_dense = False
    needs_teacher = True
    loss_weights: ClassVar[Mapping[str, float]] = {
        "classification": 1.0,
        "token_distillation": 2.0,
        "distillation": 2.0,
    }
    parameter_rates: ClassVar[Mapping[str, float]] = {r"slim/rtsm_\d+/.*": 5.0}
    training_only = (r"slim/rtsm_\d+/.*",)

    where = "after"

    keep_rate: Share | tuple[Share, ...] = 0.5
    stage_blocks: tuple[Count, ...] | None = None

    def check_options(self) -> None:
        if self.stage_blocks is not None and len(self.stage_blocks) < 2:
            raise SlimError(f"stage_blocks={self.stage_blocks!r} must hold two or more numbers of layers")
        super().check_options()

    def check_geometry(self, geometry: Geometry) -> None:
        if self.stage_blocks is not None and sum(self.stage_blocks) != geometry.depth:
            raise SlimError(
                f"stage_blocks={self.stage_blocks} has {sum(self.stage_blocks)} layers in all; the model has"
                f" {geometry.depth}"
            )
        super().check_geometry(geometry)

    def check_teacher(self, teacher: Geometry) -> None:
        ours, theirs = ((g.depth, g.dim, g.grid) for g in (self.bound, teacher))
        if ours != theirs:
            raise SlimError(
                f"method {self.method!r} compares tokens layer by layer: a teacher of depth, width and grid {theirs}"
                f" does not fit a student of {ours}"
            )

    @property
    def places(self) -> tuple[int, ...]:
        """1-based layers after which tokens are slimmed."""
        return self.locations if self.stage_blocks is None else tuple(accumulate(self.stage_blocks[:-1]))

    @property
    def schedule(self) -> Schedule:
        return Schedule(self.keep_rate, self.places, self.where)

    def extra_flops(self) -> dict[int, int]:
        half, dim = self.bound.dim // 2, self.bound.dim
        return {layer: n * (dim * half + half * k + k * dim) for layer, (n, k) in self.before_and_after.items()}

    def setup(self) -> None:
        self.tsm = [TokenSlimming(k) for k in self.counts]

    @nn.compact
    def _recover(self, tokens: Tokens, layer: int) -> Array:
        if layer < self.places[0]:
            return tokens.patches
        bound = self.bound
        return TokenRecovery(bound.num_patches, bound.dim, tokens.x.dtype, name=f"rtsm_{layer - 1}")(tokens.patches)

    def after_block(self, tokens: Tokens, layer: int, train: bool) -> Tokens:
        if layer in self.places:
            weights = self.tsm[self.places.index(layer)](tokens.patches)
            merged = aggregate(weights, tokens.patches)
            position = tokens.placed(lambda places: aggregate(weights, places))
            tokens = grid.follow_shares(tokens, weights.swapaxes(1, 2)).with_patches(merged, position=position)
            tokens = tokens.tap("assignments", weights)
        return tokens.tap("recovered", self._recover(tokens, layer)) if train else tokens

    def finish(self, tokens: Tokens, train: bool) -> Tokens:
        share = jnp.full((tokens.x.shape[0], tokens.n), 1.0 / tokens.n, jnp.float32)
        for weights in reversed(tokens.taps["assignments"]):
            share = jnp.einsum("bnk,bk->bn", weights, share)
        return tokens.remember(scores=share)

    def loss_terms(self, logits: Array, aux: Aux, targets: Targets) -> dict[str, Array]:
        losses = {"classification": loss_functions.classification(logits, aux.taps, targets)}
        if targets.teacher is None:
            return losses
        teacher_logits, teacher_aux = targets.teacher
        ours, theirs = aux.taps["recovered"], teacher_aux.taps.get("tokens", ())
        if [t.shape for t in ours] != [t.shape for t in theirs]:
            found = f"{len(theirs)} layers of {theirs[0].shape[1:]}" if theirs else "no tokens: record_tokens=True"
            raise SlimError(
                f"method {self.method!r} needs the teacher's tokens after {len(ours)} layers of {ours[0].shape[1:]};"
                f" got {found}"
            )
        losses["token_distillation"] = token_recovery(ours, theirs)
        ours_logits = loss_functions.class_head(logits, aux.taps, targets)
        losses["distillation"] = loss_functions.distillation(ours_logits, teacher_logits)
        return losses
