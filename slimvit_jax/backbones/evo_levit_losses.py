"""Evo-ViT's training on LeViT: the losses of a backbone that evolves its tokens itself (backbones/evo_levit.py)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from slimvit_jax import losses as loss_functions
from slimvit_jax.losses import Targets
from slimvit_jax.slimming import Slimming
from slimvit_jax.tokens import Aux

Array = jax.Array


class EvoLevitLosses(Slimming, kw_only=True):
    """Cross-entropy of the pooled heads and of the class token's, each the mean over its two heads where distilled.

    With a labeller only the first head of each learns the true labels, and the others its most probable class
    (`Backbone.losses`); the release weighs the three by 1/4, 1/4 and 1/2 (levit/losses_levit.py).
    """

    method = "evo_levit"
    needs_class_token = True
    keep_all_is_dense = False
    runs_on_pyramids = True
    loss_weights: ClassVar[Mapping[str, float]] = {"classification": 1.0, "class_token": 1.0}
    training_only = (r"head_cls(_dist)?/.*",)

    def loss_terms(self, logits: Array, aux: Aux, targets: Targets) -> dict[str, Array]:
        names = ("class_logits",) if targets.labeller is not None else ("class_logits", "class_dist_logits")
        heads = [aux.taps[name] for name in names if name in aux.taps]
        return {
            "classification": loss_functions.classification(logits, aux.taps, targets),
            "class_token": jnp.stack([loss_functions.cross_entropy(head, targets.labels) for head in heads]).mean(
                axis=0
            ),
        }
