"""MCTF: multi-criteria token fusion with one-step-ahead attention (Lee et al. 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import jax.numpy as jnp
from jax import Array

from slimvit_jax import losses as loss_functions
from slimvit_jax.errors import SlimError
from slimvit_jax.facts import Facts
from slimvit_jax.losses import Targets
from slimvit_jax.methods.merging import Merging
from slimvit_jax.ops import attention as attention_ops
from slimvit_jax.ops import fusion, merge
from slimvit_jax.options import Natural, Positive, Range
from slimvit_jax.plan import Geometry, Plan, check_locations
from slimvit_jax.slimming import Probe
from slimvit_jax.tokens import Aux, Tokens

if TYPE_CHECKING:
    from slimvit_jax.block import Block


#: No fusion leaves fewer patches than these; ten tokens with the class token, as released.
FEWEST = 9
#: Images count for the consistency whose own classes the first pass gives more than this; the release's task_type.
CONFIDENT = 0.4


class MCTF(Merging, kw_only=True):
    """Inside a layer, in front of its attention, r tokens fuse that are similar, unimportant and small.

        A       = softmax(q k^T / sqrt(d) + log s) of LN1(x), over the tokens still apart
        score   = ((cos(x_a, x_b) + 1) / 2)^(1/tau_sim) (u_a u_b)^(1/tau_info) (z_a z_b)^(1/tau_size)
                  u = inverse mean column of A, z = inverse size s, each over its largest
        fusion  : r // 2 even places into odd ones, then the rest of r odd ones into the even ones left, by the same
                  scores; x <- sum_i w_i x_i / sum_i w_i with w = (column mean) * s, sizes add up
        attention of the fused tokens = A, its columns summed and its rows averaged over each group: no new softmax

    "At layer t" means inside layer t, before its attention; layers (2, ..., 12) are the official activate_layer 1..11.
    Official: models/deit.py, models/modules/blocks.py, utils/mctf.py of mlvlab/MCTF. Since a column of A meets the
    value of its group, summing columns equals giving each source a copy of that value; and rows are averaged after
    they have met the values. So A itself is never cut up; equal up to rounding.

    Training fuses as inference does; gradients flow through tokens, A and values, none through choice and weights.
    *Token reduction consistency* (`consistency_r`; the paper's section 3.4, engine.py): every step applies the weights
    a second time, with an r' drawn from these. loss: classification + that of the second pass + 3 |c - c'|^2 / D, the
    class tokens after the final norm, none of the gradient into c'; over the images to whose own classes the first
    pass gives more than 0.4. A step costs both passes; a program has one for every r'. Deviation: both drop the same
    by stochastic depth, so that they differ in r alone (the release draws for each).

    Deviations: every prefix token is protected (the release's distillation token is switched off); no fusion leaves
    fewer than 9 patches for any r (there a fractional r can, and then crashes); average pooling weighs by size.
    Cost: |A| |B| D for the scores and 6 D r for the fusions; 2 D^2 r less for values and output, which only fused
    tokens have. The attention matrix is needed, so no fused attention kernel serves these layers.

    Attributes:
      r: tokens fused away per layer: a whole number, or a share in (0, 1) of the patches there are.
      layers: 1-based, increasing; None: all but the first.
      tau_sim, tau_info, tau_size: the larger, the less a criterion says.
      bidirectional: False: all r fuse from even into odd places.
      consistency_r: r' of training's second pass, of which every step draws one; the release has 0..7. (): one pass.
    """

    method = "mctf"
    facts = Facts(
        source="Lee et al. 2024, mlvlab/MCTF",
        cost="|A| |B| D + 6 r D - 2 r D² per layer, the whole attention matrix",
        training_free=True,
        grid="merged",
        training="as at inference, or in two passes",
        where="inside, before the attention",
    )

    r: Natural | Annotated[float, Range(above=0, below=1)] = 16
    layers: tuple[int, ...] | None = None
    tau_sim: Positive = 1.0
    tau_info: Positive = 20.0
    tau_size: Positive = 40.0
    bidirectional: bool = True
    consistency_r: tuple[Natural | Annotated[float, Range(above=0, below=1)], ...] = ()

    def check_options(self) -> None:
        super().check_options()
        if self.layers is not None:
            check_locations(self.layers, name="layers")

    def check_geometry(self, geometry: Geometry) -> None:
        super().check_geometry(geometry)
        if self.consistency_r and not geometry.class_token:
            raise SlimError("consistency_r compares class tokens, and this model has no class token")
        if self.layers is not None:
            check_locations(self.layers, geometry.depth, "layers")

    @property
    def plan(self) -> Plan:
        active = range(2, self.bound.depth + 1) if self.layers is None else self.layers
        attention, mlp, n = [], [], self.bound.num_patches
        for layer in range(1, self.bound.depth + 1):
            attention.append(n)
            if layer in active:
                wanted = self.r if isinstance(self.r, int) else int(n * self.r)
                n -= max(0, min(wanted, n - FEWEST, n // 2))
            mlp.append(n)
        return Plan(tuple(attention), tuple(mlp))

    @property
    def second_passes(self) -> tuple[Mapping[str, Any], ...]:
        return tuple({"r": r, "consistency_r": ()} for r in self.consistency_r)

    @property
    def loss_weights(self) -> Mapping[str, float]:  # type: ignore[override]  # those of two passes where there are two
        weights = {"classification": 1.0}
        return weights | {"second_classification": 1.0, "consistency": 3.0} if self.consistency_r else weights

    def loss_terms(self, logits: Array, aux: Aux, targets: Targets) -> dict[str, Array]:
        losses = super().loss_terms(logits, aux, targets)
        if self.consistency_r:
            if targets.second is None:
                raise SlimError("consistency_r: the losses compare with a second pass, targets.second")
            other, token = targets.second
            confident = loss_functions.confidence(logits, targets.labels) > CONFIDENT
            confident = confident.astype(jnp.float32)
            losses["second_classification"] = loss_functions.cross_entropy(other, targets.labels)
            losses["consistency"] = loss_functions.consistency(aux.features[:, 0], token, confident, targets.mask)
        return losses

    def extra_flops(self) -> dict[int, int]:
        dim, prefix = self.bound.dim, self.bound.prefix_tokens
        cost = lambda n, r: merge.pairs(n + prefix) * dim + 6 * r * dim - 2 * r * dim**2
        return {layer: cost(n, r) for layer, n, r in self.merging}

    def attend(self, tokens: Tokens, layer: int, block: Block, train: bool) -> tuple[Tokens, Probe]:
        r, size = self.merged[layer - 1], tokens.memory["size"]
        if not r:
            return super().attend(tokens, layer, block, train)
        attention = block.attention_map(tokens)
        received = fusion.importance(attention)
        scores = fusion.attraction(tokens.x, received, size, self.tau_sim, self.tau_info, self.tau_size)
        matching = fusion.bidirectional_matching(scores, r, tokens.prefix, self.bidirectional)
        fused = self._fuse(tokens, matching, received * size)
        values = merge.unmerge(matching, block.attention_values(fused))
        read = attention_ops.weighted_values(attention, values)
        read, _ = merge.merge_weighted(matching, read.reshape(*read.shape[:2], self.bound.dim), received * size)
        return fused.add(block.attention_branch(read, train)), {}

    def _fuse(self, tokens: Tokens, matching: merge.Matching, weight: Array) -> Tokens:
        x, _ = merge.merge_weighted(matching, tokens.x, weight)
        tokens = self.reduced(tokens, matching, x)
        return tokens.replace(log_weight=jnp.log(tokens.memory["size"]))
