"""The named encoders with rotary positions: DINOv3 and EVA-02."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from slimvit_jax.named import CLIP, IMAGENET, NamedModel, Row, entry, sized


def table() -> Mapping[str, NamedModel]:
    """Every name."""
    return {name: entry("eva", kwargs, image, hub) for name, kwargs, image, hub in encoders()}


def encoders() -> Iterator[Row]:
    """(name, keywords, preparation of images, repository) of every encoder."""
    yield from _dinov3()
    yield from _eva02()


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
            kwargs = sized(size, 16, 256, **{**rotary, **more})
            yield name, kwargs, IMAGENET, f"{name}.lvd1689m"


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
        image = CLIP.replace(crop_pct=0.9 if side == 224 else 1.0, crop_mode="squash" if squash else "center")
        name = f"eva02_{size}_patch{patch}_{'clip_' if clip else ''}{side}"
        yield name, sized(size, patch, side, classes, **more), image, f"{name}.{tag}"
