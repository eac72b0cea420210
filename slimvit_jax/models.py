"""The named models as data: what to build, how timm prepares their images, where their published weights are.

The ViTs and LeViTs are facts of timm 1.0.31 (constructor arguments in vision_transformer.py, deit.py and levit.py, and
the default pretrained configuration of each name); LV-ViT, SiT and Evo-LeViT, which timm has not, of their authors'
code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from itertools import accumulate
from types import MappingProxyType
from typing import Any

from slimvit_jax import models_encoders
from slimvit_jax.errors import SlimError
from slimvit_jax.images.preprocess import Preprocess
from slimvit_jax.models_encoders import HALF

TIMMS = Preprocess(crop_pct=0.9)  # ImageNet's mean and deviation, bicubic

#: Of models without a name in the table: [-1, 1], the whole image.
UNNAMED = Preprocess(mean=HALF, std=HALF, crop_pct=1.0)


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


# width, layers, heads of the standard sizes
_SIZES: dict[str, tuple[int, int, int]] = {
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
}


def _entry(family: str, size: str, patch: int, side: int, preprocess: Preprocess, hub: str, **more: Any) -> NamedModel:
    dim, depth, heads = _SIZES[size]
    kwargs: dict[str, Any] = {
        "img_size": side,
        "patch_size": patch,
        "embed_dim": dim,
        "depth": depth,
        "num_heads": heads,
        "mlp_ratio": 4.0,
        "qkv_bias": True,
        "num_classes": 1000,
    } | more
    preprocess = preprocess.replace(img_size=side)
    return NamedModel(family, MappingProxyType(kwargs), preprocess, f"timm/{hub}")


def _table() -> dict[str, NamedModel]:
    table: dict[str, NamedModel] = {}
    for size in ("tiny", "small", "base", "large"):
        for side, crop in ((224, 0.9), (384, 1.0)):
            name = f"vit_{size}_patch16_{side}"
            tag = "augreg2_in21k_ft_in1k" if (size, side) == ("base", 224) else "augreg_in21k_ft_in1k"
            table[name] = _entry("vit", size, 16, side, UNNAMED.replace(crop_pct=crop), f"{name}.{tag}")
    for size in ("tiny", "small", "base"):
        name = f"deit_{size}_patch16_224"
        table[name] = _entry("vit", size, 16, 224, TIMMS, f"{name}.fb_in1k")
        name = f"deit_{size}_distilled_patch16_224"
        table[name] = _entry("deit_distilled", size, 16, 224, TIMMS, f"{name}.fb_in1k")
    for size in ("small", "base", "large"):
        name = f"deit3_{size}_patch16_224"
        more = {"no_embed_class": True, "init_values": 1e-6}
        table[name] = _entry("vit", size, 16, 224, TIMMS, f"{name}.fb_in1k", **more)
    for name, family, kwargs, preprocess, hub in models_encoders.rows():
        table[name] = NamedModel(family, MappingProxyType(kwargs), preprocess, hub)
    return table | _lvvit_table() | _levit_table()


def _lvvit_table() -> dict[str, NamedModel]:
    """LV-ViT, and SiT on it: sizes, stages and crops of models/lvvit.py and exp/ of Sense-X/SiT."""
    # width, layers, heads, image side, stem, skip_lam, crop
    sizes = {
        "t": (320, 14, 5, 224, "4c", 2.0, 0.9),
        "s": (384, 16, 6, 224, "4c", 2.0, 0.9),
        "m": (512, 20, 8, 224, "4c", 2.0, 1.0),
        "l": (768, 24, 12, 288, "6c", 3.0, 1.0),
    }
    # backbone and layers per stage
    slimmed = {
        "t": ("t", (1, 1, 1, 11)),
        "xs": ("s", (1, 1, 1, 13)),
        "s": ("s", (9, 3, 2, 2)),
        "m": ("m", (10, 4, 3, 3)),
        "l": ("l", (10, 4, 3, 7)),
    }
    table: dict[str, NamedModel] = {}
    for size, (dim, depth, heads, side, stem, skip_lam, crop) in sizes.items():
        kwargs: dict[str, Any] = {
            "img_size": side,
            "patch_size": 16,
            "embed_dim": dim,
            "depth": depth,
            "num_heads": heads,
            "mlp_ratio": 3.0,
            "qkv_bias": False,
            "num_classes": 1000,
            "p_emb": stem,
            "skip_lam": skip_lam,
        }
        preprocess = TIMMS.replace(crop_pct=crop, img_size=side)
        table[f"lvvit_{size}"] = NamedModel("lvvit", MappingProxyType(kwargs), preprocess, hub="")
    for size, (backbone, blocks) in slimmed.items():
        options = MappingProxyType({"keep_rate": 0.5, "locations": tuple(accumulate(blocks[:-1]))})
        dense = table[f"lvvit_{backbone}"]
        table[f"sit_{size}"] = dataclasses.replace(dense, method="sit", method_kwargs=options)
    return table


def _levit_table() -> dict[str, NamedModel]:
    # widths, layers and heads of the stages, channels per head
    sizes = {
        "128s": ((128, 256, 384), (2, 3, 4), (4, 6, 8), 16),
        "128": ((128, 256, 384), (4, 4, 4), (4, 8, 12), 16),
        "192": ((192, 288, 384), (4, 4, 4), (3, 5, 6), 32),
        "256": ((256, 384, 512), (4, 4, 4), (4, 6, 8), 32),
        "384": ((384, 512, 768), (4, 4, 4), (6, 9, 12), 32),
    }
    table: dict[str, NamedModel] = {}
    for size, (dims, depths, heads, key_dim) in sizes.items():
        kwargs: dict[str, Any] = {
            "img_size": 224,
            "embed_dim": dims,
            "depth": depths,
            "num_heads": heads,
            "key_dim": key_dim,
            "num_classes": 1000,
            "distilled": True,
        }
        hub = f"timm/levit_{size}.fb_dist_in1k"
        table[f"levit_{size}"] = NamedModel("levit", MappingProxyType(kwargs), TIMMS, hub)
        for side, name in ((224, f"evo_levit_{size}"), (384, f"evo_levit_{size}_384")):  # levit/ of Evo-ViT's release
            more = MappingProxyType(kwargs | {"img_size": side})
            table[name] = NamedModel("evo_levit", more, TIMMS.replace(img_size=side), hub="")
    return table


NAMED: Mapping[str, NamedModel] = MappingProxyType(_table())


def weights_of(source: object) -> str | None:
    """The named model whose published weights "hf-hub:timm/NAME[.TAG]" are; None for other sources."""
    repository = str(source).removeprefix("hf-hub:")
    tagged = repository.removeprefix("timm/")
    name = tagged if tagged in NAMED else tagged.partition(".")[0]  # some names have a tag of their own: ".mae"
    return name if repository != str(source) and repository.startswith("timm/") and name in NAMED else None


def check_weights_of(model: str, source: object, said: str) -> None:
    """Raises SlimError where the published weights `source` are of another named model than `model`.

    Arrays of the same shapes would be taken in silence, and images normalised in the other model's way. A model that
    differs in the size of its images only may start from them.

    Args:
      model: a named model; any other name is not checked.
      source: of `slim.load`.
      said: how the reader gave the source, such as "--weights".
    """
    other = weights_of(source)
    if other is None or model not in NAMED or _essence(other) == _essence(model):
        return
    right = NAMED[model].hub
    give = f"; those of {model!r} are hf-hub:{right}" if right else ""
    raise SlimError(f"{said}={str(source)!r} are weights of {other!r}, not of the model {model!r}{give}")


def _essence(name: str) -> tuple[object, ...]:
    """What two named models must share for one to start from the other's weights."""
    named = NAMED[name]
    kwargs = {key: value for key, value in named.kwargs.items() if key not in ("img_size", "num_classes")}
    return named.family, tuple(sorted(kwargs.items())), named.preprocess.mean, named.preprocess.std


def weights_path(path: str, name: str, field: str) -> str:
    """The weights file or repository of model `name` that a config's field means by `path`.

    "published" is the repository of the weights that timm publishes under that name, so that they follow the model;
    anything else is itself.

    Raises:
      SlimError: nobody has published weights of that name.
    """
    if path != "published":
        return path
    if name not in NAMED or not NAMED[name].hub:
        raise SlimError(
            f"config.{field}='published', but there are no published weights of model {name!r};"
            f" --config.{field}=FILE or hf-hub:OWNER/NAME names others, --config.{field}= stands for none"
        )
    return f"hf-hub:{NAMED[name].hub}"
