"""The named ViTs and DeiTs, those trained on ImageNet's labels and the encoders pretrained on other tasks.

Most encoders have no classifier in their weights (num_classes 0); of CLIP's towers that have none the "classes" are the
channels of the space that images and texts share.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from slimvit_jax.images.preprocess import Preprocess
from slimvit_jax.named import CLIP, HALF, IMAGENET, TIMMS, UNNAMED, NamedModel, Row, entry, sized

_HALF = Preprocess(mean=HALF, std=HALF, crop_pct=0.9)


def table() -> Mapping[str, NamedModel]:
    """Every name."""
    models: dict[str, NamedModel] = {}
    for size in ("tiny", "small", "base", "large"):
        for side, crop in ((224, 0.9), (384, 1.0)):
            name = f"vit_{size}_patch16_{side}"
            tag = "augreg2_in21k_ft_in1k" if (size, side) == ("base", 224) else "augreg_in21k_ft_in1k"
            models[name] = entry("vit", sized(size, 16, side, 1000), UNNAMED.replace(crop_pct=crop), f"{name}.{tag}")
    for size in ("tiny", "small", "base"):
        for family, kind in (("vit", ""), ("deit_distilled", "_distilled")):
            name = f"deit_{size}{kind}_patch16_224"
            models[name] = entry(family, sized(size, 16, 224, 1000), TIMMS, f"{name}.fb_in1k")
    for size in ("small", "base", "large"):
        name = f"deit3_{size}_patch16_224"
        kwargs = sized(size, 16, 224, 1000, no_embed_class=True, init_values=1e-6)
        models[name] = entry("vit", kwargs, TIMMS, f"{name}.fb_in1k")
    return models | {name: entry("vit", kwargs, image, hub) for name, kwargs, image, hub in encoders()}


def encoders() -> Iterator[Row]:
    """(name, keywords, preparation of images, repository) of every encoder."""
    yield from _siglip()
    yield from _clip()
    yield from _dinov2()
    for size, patch in (("base", 16), ("large", 16), ("huge", 14)):
        name = f"vit_{size}_patch{patch}_224.mae"
        yield name, sized(size, patch, 224), TIMMS, name


def _siglip() -> Iterator[Row]:
    """The default weights are SigLIP 2's ("v2_webli"); SigLIP's ("webli") have the same architecture."""
    sizes = {
        "base": ((16, 224), (16, 256), (16, 384), (16, 512)),
        "large": ((16, 256), (16, 384)),
        "so400m": ((14, 224), (14, 378), (16, 256)),
    }
    for size, shapes in sizes.items():
        ratio: dict[str, Any] = {"mlp_ratio": 3.7362} if size == "so400m" else {}
        for patch, side in shapes:
            ratio |= {"act_layer": "gelu_tanh"} if (size, patch) == ("so400m", 16) else {}
            name = f"vit_{size}_patch{patch}_siglip_{side}"
            pooled: dict[str, Any] = {"class_token": False, "global_pool": "map"}
            yield name, sized(size, patch, side, **pooled, **ratio), _HALF, f"{name}.v2_webli"
    name, pooled = "vit_base_patch16_siglip_gap_224", {"class_token": False, "global_pool": "avg", "fc_norm": False}
    yield name, sized("base", 16, 224, **pooled), _HALF, f"{name}.v2_webli"


def _clip() -> Iterator[Row]:
    norm: dict[str, Any] = {"pre_norm": True, "eps": 1e-5}
    in1k = "laion2b_ft_in12k_in1k"
    own = CLIP.replace(mean=HALF, std=HALF, crop_pct=1.0)  # LAION's ViT-L
    for size, patch, side, image in (
        ("base", 32, 224, CLIP),
        ("base", 16, 224, CLIP.replace(crop_pct=0.95)),
        ("base", 16, 384, CLIP.replace(crop_pct=1.0, crop_mode="squash")),
        ("large", 14, 224, own),
        ("large", 14, 336, own.replace(crop_mode="squash")),
    ):
        name = f"vit_{size}_patch{patch}_clip_{side}"
        yield name, sized(size, patch, side, 1000, **norm), image, f"{name}.{in1k}"
    for size, patch, side, width, crop, tag in (
        ("base", 32, 224, 512, 0.9, "laion400m_e32"),
        ("base", 16, 224, 512, 1.0, "metaclip_2pt5b"),
        ("large", 14, 224, 768, 1.0, "dfn2b"),
        ("large", 14, 336, 768, 1.0, "openai"),
    ):
        kwargs = sized(size, patch, side, width, **norm, act_layer="quick_gelu")
        image = CLIP.replace(crop_pct=crop)
        hub = f"vit_{size}_patch{patch}_clip_{side}.{tag}"
        yield f"vit_{size}_patch{patch}_clip_quickgelu_{side}", kwargs, image, hub


def _dinov2() -> Iterator[Row]:
    for size in ("small", "base", "large", "giant"):
        gated: dict[str, Any] = {"mlp_ratio": 2.66667 * 2, "swiglu_mlp": True} if size == "giant" else {}
        for registers, more in (("", {}), ("_reg4", {"reg_tokens": 4, "no_embed_class": True})):
            name = f"vit_{size}_patch14{registers}_dinov2"
            kwargs = sized(size, 14, 518, init_values=1e-5, **more, **gated)
            yield name, kwargs, IMAGENET, f"{name}.lvd142m"
