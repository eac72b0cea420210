"""What a named model is, and what the tables of several backbones share.

The tables stand beside the backbones. They are facts of timm 1.0.31 (constructor arguments of each name and its default
pretrained configuration); LV-ViT, SiT and Evo-LeViT, which timm has not, of their authors' code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from slimvit_jax.images.preprocess import Preprocess

HALF = (0.5, 0.5, 0.5)
IMAGENET = Preprocess(crop_pct=1.0)
TIMMS = Preprocess(crop_pct=0.9)  # ImageNet's mean and deviation, bicubic
#: Of models without a name in the tables: [-1, 1], the whole image.
UNNAMED = Preprocess(mean=HALF, std=HALF, crop_pct=1.0)
#: OpenAI's mean and deviation.
CLIP = Preprocess(mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711), crop_pct=0.9)
# width, layers, heads of the standard sizes
_SIZES: dict[str, tuple[int, int, int]] = {
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "small_plus": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "so400m": (1152, 27, 16),
    "huge": (1280, 32, 16),
    "giant": (1536, 40, 24),
}


#: Name, keywords, preparation of images, repository.
Row = tuple[str, dict[str, Any], Preprocess, str]


@dataclasses.dataclass(frozen=True)
class NamedModel:
    """One entry of the table.

    Attributes:
      family: the any-size family that builds it ("vit", "lvvit").
      kwargs: that family's keywords under timm's names; what a caller passes to create_model overrides them.
      preprocess: timm's default preparation of images.
      hub: the Hugging Face repository of timm's default weights; "" where timm has none.
      method: the slimming method that belongs to the name, None for a dense model; a caller's method replaces it.
      method_kwargs: that method's options, which a caller's replace.
    """

    family: str
    kwargs: Mapping[str, Any]
    preprocess: Preprocess
    hub: str
    method: str | None = None
    method_kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def entry(family: str, kwargs: Mapping[str, Any], preprocess: Preprocess, hub: str = "") -> NamedModel:
    """An entry of a dense model; `hub` is the repository's name without "timm/"."""
    fitted = preprocess.replace(img_size=kwargs["img_size"])
    return NamedModel(family, MappingProxyType(dict(kwargs)), fitted, f"timm/{hub}" if hub else "")


def sized(size: str, patch: int, side: int, classes: int = 0, **more: Any) -> dict[str, Any]:
    """The keywords of a standard size."""
    dim, depth, heads = _SIZES[size]
    shape = {"img_size": side, "patch_size": patch, "embed_dim": dim, "depth": depth, "num_heads": heads}
    return {**shape, "mlp_ratio": 4.0, "qkv_bias": True, "num_classes": classes, **more}
