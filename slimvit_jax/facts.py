"""What a table of methods says of each, beside what its code tells."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Facts:
    """Of a slimming method, as `slimvit_jax.slimming.Slimming.facts`.

    Attributes:
      source: paper and official code.
      cost: multiply-adds beyond the layers; N patches, n of them left, P prefix tokens, D width, d of a head, H heads.
      training_free: made for, or good with, a dense model's weights as they are.
      learns: parameters of its own.
      training: how it is trained, if it is.
      where: in, before or after the layer that "at a location" means.
      shapes: of its tokens.
      grid: what becomes of the grid of patches.
    """

    source: str = ""
    cost: str = ""
    training_free: bool = False
    learns: str = "nothing"
    training: str = "as at inference"
    where: str = "inside"
    shapes: str = "static"
    grid: str = "dropped"
