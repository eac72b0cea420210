"""EVA-02 (Fang et al. 2023) and DINOv3 (Simeoni et al. 2025) with timm's options and names (timm/models/eva.py)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from slimvit_jax.backbones import eva_names
from slimvit_jax.backbones.base import Method, renamed
from slimvit_jax.backbones.eva_layers import EvaBlock, RematEvaBlock
from slimvit_jax.backbones.vit import VisionTransformer
from slimvit_jax.block import Block
from slimvit_jax.errors import SlimError
from slimvit_jax.named import NamedModel
from slimvit_jax.ops.rotary import Rotary
from slimvit_jax.options import Natural, Pair, Positive

#: timm's keywords of this family for what `VisionTransformer` calls otherwise.
_SPELLINGS = {"num_reg_tokens": "reg_tokens", "use_fc_norm": "fc_norm"}


class Eva(VisionTransformer, kw_only=True):
    """A vision transformer with rotary positions: queries and keys turn by the places of their patches.

    What differs from `VisionTransformer`, whose other options hold here too: `global_pool` is "avg" by default, no bias
    of the keys, LayerScale gains named gamma_1 and gamma_2, and the options below. A patch keeps its place when it
    moves or others are dropped; a token made of several is where they are on average (`Tokens.positions`), and one that
    a method gives no place is in the middle. Prefix tokens do not turn. The keys that merging methods compare are
    those before the turn: alike in content, wherever they are.

    Attributes:
      use_rot_pos_emb, use_abs_pos_emb: rotary positions, and learned ones added to the tokens.
      rope_type: "cat" (EVA-02) or "dinov3", see `ops.rotary.Rotary`.
      rope_temperature, rope_rotate_half: of it.
      ref_feat_shape: the grid of the pretraining, for "cat"; None: the model's own.
      qkv_fused: one projection to queries, keys and values, else three.
      swiglu_mlp: gated MLPs; mlp_ratio is the width behind the gate.
      scale_mlp, scale_attn_inner, swiglu_align_to: see `EvaBlock`.
    """

    families = {"eva": {}}

    global_pool: Literal["token", "avg", "map"] = "avg"
    use_rot_pos_emb: bool = False
    use_abs_pos_emb: bool = True
    rope_type: Literal["cat", "dinov3"] = "cat"
    rope_temperature: Positive = 10000.0
    rope_rotate_half: bool = False
    ref_feat_shape: Pair | None = None
    qkv_fused: bool = True
    scale_mlp: bool = False
    scale_attn_inner: bool = False
    swiglu_align_to: Natural = 0

    @classmethod
    def named(cls) -> Mapping[str, NamedModel]:
        return eva_names.table()

    @classmethod
    def translate(cls, method: Method, options: dict[str, Any]) -> tuple[Method, dict[str, Any]]:
        options = dict(options)
        for theirs, ours in _SPELLINGS.items():
            renamed(options, theirs, ours)
        return method, options

    @classmethod
    def normalise(cls, options: dict[str, Any]) -> dict[str, Any]:
        options = super().normalise(options)
        get = lambda name: cls.option(options, name)
        channels = get("embed_dim") // get("num_heads")
        if get("use_rot_pos_emb") and channels % 4:
            raise SlimError(f"use_rot_pos_emb=True: {channels} channels per head must be divisible by 4")
        if get("distilled"):
            raise SlimError("distilled=True: this family has no distillation token")
        if get("scale_mlp") and not get("swiglu_mlp"):
            raise SlimError("scale_mlp=True: the norm is inside a gated MLP; it needs swiglu_mlp=True")
        return options

    @property
    def block_class(self) -> type[Block]:
        return RematEvaBlock if self.remat else EvaBlock

    @property
    def block_options(self) -> dict[str, Any]:
        own = ("qkv_fused", "scale_attn_inner", "scale_mlp", "swiglu_align_to")
        return {**super().block_options, "mlp_ratio": self.mlp_ratio, **{name: getattr(self, name) for name in own}}

    @property
    def rotary(self) -> Rotary | None:
        if not self.use_rot_pos_emb:
            return None
        return Rotary(
            grid=self.geometry.grid,
            head_dim=self.embed_dim // self.num_heads,
            kind=self.rope_type,
            temperature=float(self.rope_temperature),
            rotate_half=self.rope_rotate_half,
            reference=self.ref_feat_shape,
        )

    @property
    def position_count(self) -> int:
        return super().position_count if self.use_abs_pos_emb else 0
