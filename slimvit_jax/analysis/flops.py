"""Multiply-adds in closed form, from the same plan that the model runs."""

from __future__ import annotations

import dataclasses

from slimvit_jax.errors import SlimError


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


def flops(model, *, paper_predictor: bool = False) -> FlopsReport:
    """The multiply-adds of a model per image.

    Args:
      model: from `create_model`.
      paper_predictor: count the life predictor as the paper does, two full projections 2 N D^2, not the D^2 + N D
        that ours computes.

    Raises:
      SlimError: if `paper_predictor` is asked of a model without life regression.
    """
    extra = dict(model.slim.extra_flops())
    if paper_predictor:
        if model.slim.method != "life_regression":
            raise SlimError(f"paper_predictor=True: the method is {model.slim.method!r}, not 'life_regression'")
        extra = {model.slim.base: 2 * model.geometry.num_patches * model.geometry.dim**2}
    embed, layers, head = model.flops_parts()
    per_layer = tuple(cost + extra.get(layer, 0) for layer, cost in enumerate(layers, start=1))
    return FlopsReport(embed=embed, per_layer=per_layer, head=head, method=sum(extra.values()))
