"""The backbones, by the names of their families. A new one is one file here and one line in `BACKBONES`.

None of them knows a slimming method by name.
"""

from __future__ import annotations

from typing import Any

from slimvit_jax.backbones.base import Backbone
from slimvit_jax.backbones.eva import Eva
from slimvit_jax.backbones.evo_levit import EvoLeViT
from slimvit_jax.backbones.levit import LeViT
from slimvit_jax.backbones.lvvit import LVViT
from slimvit_jax.backbones.vit import VisionTransformer

BACKBONES: tuple[type[Backbone], ...] = (
    VisionTransformer,
    Eva,
    LVViT,
    LeViT,
    EvoLeViT,
)
#: Families for any size: name to (class, options that make the family).
FAMILIES: dict[str, tuple[type[Backbone], dict[str, Any]]] = {
    name: (cls, dict(fixed)) for cls in BACKBONES for name, fixed in vars(cls).get("families", {}).items()
}
