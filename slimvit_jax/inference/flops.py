"""Multiply-adds in closed form, from the same plan that the model runs."""

from __future__ import annotations

import dataclasses
from typing import Any

from slimvit_jax.backbones.base import Backbone
from slimvit_jax.errors import SlimError
from slimvit_jax.keywords import checked


@dataclasses.dataclass(frozen=True)
class FlopsReport:
    """Multiply-adds of one image at inference (what the papers call FLOPs); norms, softmax and GELU not counted.

    Attributes:
      embed: patch embedding.
      per_layer: every layer, with what the slimming method adds there.
      head: classifier heads.
      method: the part of `per_layer` that the slimming method adds.
    """

    embed: int
    per_layer: tuple[int, ...]
    head: int
    method: int

    @property
    def total(self) -> int:
        """Everything."""
        return self.embed + sum(self.per_layer) + self.head


@checked
def flops(model: Backbone, *, paper_predictor: bool = False) -> FlopsReport:
    """The multiply-adds of a model per image.

    Args:
      model: from `create_model`.
      paper_predictor: count the life predictor as the paper does, two full projections 2 N D^2, not the D^2 + N D
        that ours computes.

    Raises:
      SlimError: if `paper_predictor` is asked of a model whose method has no other count.
    """
    slim: Any = model.slim
    extra: dict[int, int] = dict(slim.extra_flops())
    if paper_predictor:
        counted = slim.paper_flops()
        if counted is None:
            raise SlimError(f"paper_predictor=True: method {slim.method!r} is counted as its paper does anyway")
        extra = counted
    embed, layers, head = model.flops_parts()
    per_layer = tuple(cost + extra.get(layer, 0) for layer, cost in enumerate(layers, start=1))
    return FlopsReport(embed=embed, per_layer=per_layer, head=head, method=sum(extra.values()))
