"""The named encoders pretrained on other tasks than ImageNet's labels: SigLIP, CLIP, DINOv2, DINOv3, EVA-02, MAE.

Facts of timm 1.0.31: the constructor arguments of each name and its default pretrained configuration. Most have no
classifier in their weights (num_classes 0); of CLIP's towers that have none the "classes" are the channels of the space
that images and texts share.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from slimvit_jax.images.preprocess import Preprocess

HALF = (0.5, 0.5, 0.5)
_IMAGENET = Preprocess(crop_pct=1.0)
_HALF = Preprocess(mean=HALF, std=HALF, crop_pct=0.9)
_CLIP = Preprocess(
    mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711), crop_pct=0.9
)  # OpenAI's mean and deviation
# width, layers, heads
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
Row = tuple[str, str, dict[str, Any], Preprocess, str]


def rows() -> Iterator[Row]:
    """(name, family, keywords of the family, preparation of images, repository) of every encoder."""
    yield from _siglip()
    yield from _clip()
    yield from _dinov2()
    yield from _dinov3()
    yield from _eva02()
    for size, patch in (("base", 16), ("large", 16), ("huge", 14)):
        name = f"vit_{size}_patch{patch}_224.mae"
        yield name, "vit", _size(size, patch, 224), _IMAGENET.replace(crop_pct=0.9, img_size=224), f"timm/{name}"


def _size(size: str, patch: int, side: int, classes: int = 0, **more: Any) -> dict[str, Any]:
    dim, depth, heads = _SIZES[size]
    shape = {"img_size": side, "patch_size": patch, "embed_dim": dim, "depth": depth, "num_heads": heads}
    return {**shape, "mlp_ratio": 4.0, "qkv_bias": True, "num_classes": classes, **more}


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
            image = _HALF.replace(img_size=side)
            name = f"vit_{size}_patch{patch}_siglip_{side}"
            pooled: dict[str, Any] = {"class_token": False, "global_pool": "map"}
            yield name, "vit", _size(size, patch, side, **pooled, **ratio), image, f"timm/{name}.v2_webli"
    name, pooled = "vit_base_patch16_siglip_gap_224", {"class_token": False, "global_pool": "avg", "fc_norm": False}
    yield name, "vit", _size("base", 16, 224, **pooled), _HALF.replace(img_size=224), f"timm/{name}.v2_webli"


def _clip() -> Iterator[Row]:
    norm: dict[str, Any] = {"pre_norm": True, "eps": 1e-5}
    in1k = "laion2b_ft_in12k_in1k"
    own = _CLIP.replace(mean=HALF, std=HALF, crop_pct=1.0)  # LAION's ViT-L
    for size, patch, side, image in (
        ("base", 32, 224, _CLIP),
        ("base", 16, 224, _CLIP.replace(crop_pct=0.95)),
        ("base", 16, 384, _CLIP.replace(crop_pct=1.0, crop_mode="squash")),
        ("large", 14, 224, own),
        ("large", 14, 336, own.replace(crop_mode="squash")),
    ):
        name = f"vit_{size}_patch{patch}_clip_{side}"
        yield name, "vit", _size(size, patch, side, 1000, **norm), image.replace(img_size=side), f"timm/{name}.{in1k}"
    for size, patch, side, width, crop, tag in (
        ("base", 32, 224, 512, 0.9, "laion400m_e32"),
        ("base", 16, 224, 512, 1.0, "metaclip_2pt5b"),
        ("large", 14, 224, 768, 1.0, "dfn2b"),
        ("large", 14, 336, 768, 1.0, "openai"),
    ):
        kwargs = _size(size, patch, side, width, **norm, act_layer="quick_gelu")
        image = _CLIP.replace(crop_pct=crop, img_size=side)
        hub = f"timm/vit_{size}_patch{patch}_clip_{side}.{tag}"
        yield f"vit_{size}_patch{patch}_clip_quickgelu_{side}", "vit", kwargs, image, hub


def _dinov2() -> Iterator[Row]:
    for size in ("small", "base", "large", "giant"):
        gated: dict[str, Any] = {"mlp_ratio": 2.66667 * 2, "swiglu_mlp": True} if size == "giant" else {}
        for registers, more in (("", {}), ("_reg4", {"reg_tokens": 4, "no_embed_class": True})):
            name = f"vit_{size}_patch14{registers}_dinov2"
            kwargs = _size(size, 14, 518, init_values=1e-5, **more, **gated)
            yield name, "vit", kwargs, _IMAGENET.replace(img_size=518), f"timm/{name}.lvd142m"


def _dinov3() -> Iterator[Row]:
    rotary: dict[str, Any] = {"use_rot_pos_emb": True, "use_abs_pos_emb": False, "rope_type": "dinov3"}
    rotary |= {"rope_temperature": 100.0, "rope_rotate_half": True}
    for size in ("small", "small_plus", "base", "large"):
        for suffix, bias in (("", False), ("_qkvb", True)):
            name = f"vit_{size}_patch16_dinov3{suffix}"
            more: dict[str, Any] = {
                "qkv_bias": bias,
                "init_values": 1e-5,
                "reg_tokens": 4,
                "fc_norm": False,
                "eps": 1e-5,
            }
            more |= {"swiglu_mlp": True, "swiglu_align_to": 8} if size == "small_plus" else {}
            kwargs = _size(size, 16, 256, **{**rotary, **more})
            yield name, "eva", kwargs, _IMAGENET.replace(img_size=256), f"timm/{name}.lvd1689m"


def _eva02() -> Iterator[Row]:
    fine = "mim_in22k_ft_in22k_in1k"
    for size, patch, side, classes, tag, squash in (
        ("tiny", 14, 224, 0, "mim_in22k", False),
        ("small", 14, 224, 0, "mim_in22k", False),
        ("base", 14, 224, 0, "mim_in22k", False),
        ("large", 14, 224, 0, "mim_in22k", False),
        ("tiny", 14, 336, 1000, "mim_in22k_ft_in1k", False),
        ("small", 14, 336, 1000, "mim_in22k_ft_in1k", False),
        ("base", 14, 448, 1000, fine, True),
        ("large", 14, 448, 1000, fine, True),
        ("base", 16, 224, 512, "merged2b", False),
        ("large", 14, 224, 768, "merged2b", False),
        ("large", 14, 336, 768, "merged2b", False),
    ):
        clip = tag == "merged2b"
        more: dict[str, Any] = {
            "mlp_ratio": 4 * 2 / 3,
            "swiglu_mlp": True,
            "use_rot_pos_emb": True,
            "ref_feat_shape": (16, 16),
        }
        more |= {"qkv_fused": False, "scale_mlp": True} if size in ("base", "large") else {}
        more |= {"scale_attn_inner": True, "global_pool": "token"} if clip else {}
        image = _CLIP.replace(crop_pct=0.9 if side == 224 else 1.0, crop_mode="squash" if squash else "center")
        name = f"eva02_{size}_patch{patch}_{'clip_' if clip else ''}{side}"
        yield name, "eva", _size(size, patch, side, classes, **more), image.replace(img_size=side), f"timm/{name}.{tag}"
