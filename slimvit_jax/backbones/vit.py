"""ViT and DeiT with timm's options, parameter names and numbers (timm/models/vision_transformer.py, deit.py)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

import jax.numpy as jnp
from jax import Array

from slimvit_jax.backbones import vit_names
from slimvit_jax.backbones.base import Backbone
from slimvit_jax.backbones.classifier import Classifier
from slimvit_jax.backbones.embedding import Embedding
from slimvit_jax.block import Block, RematBlock
from slimvit_jax.errors import SlimError
from slimvit_jax.layers import PatchEmbed
from slimvit_jax.named import NamedModel
from slimvit_jax.ops.rotary import Rotary
from slimvit_jax.options import Count, DropRate, Natural, Pair, Positive
from slimvit_jax.plan import Geometry


class VisionTransformer(Backbone, kw_only=True):
    """A plain vision transformer with a slimming method plugged into its encoder loop.

    Build it with `create_model`, which binds the method. Parameters do not depend on the method, whose own are all
    under "slim".

    Attributes (besides those of `Backbone`):
      patch_size: (height, width) of a patch, which must divide the image.
      embed_dim, depth, num_heads, mlp_ratio: D, T, H, hidden width over D.
      qkv_bias, qk_norm, init_values: of the blocks; init_values is LayerScale's, None for none.
      act_layer: activation of the MLPs: "gelu" (exact), "gelu_tanh" or "quick_gelu" (CLIP's).
      swiglu_mlp: gated MLPs with SiLU, packed as timm's SwiGLUPacked (DINOv2-g): mlp_ratio counts gate and values.
      class_token: whether there is one; without it global_pool must be "avg" or "map".
      reg_tokens: number of register tokens behind the class token.
      distilled: the second head reads DeiT's distillation token, a prefix token behind the class token.
      no_embed_class: position embeddings on the patches only.
      global_pool: "token" for the class token, "avg" for the mean of the patches, "map" for attention pooling by one
        learned query (SigLIP).
      pool_include_prefix: "avg" and "map" pool over the prefix tokens too.
      fc_norm: normalise after pooling instead of before; None means with "avg" only, as timm.
      pre_norm: a norm in front of the first layer; the patch embedding then has no bias, as timm.
      drop_rate, pos_drop_rate, proj_drop_rate: dropout of the head, the embedding, the branches.
      drop_path_rate: stochastic depth of the last layer; grows linearly from 0 at the first.
      eps: of the layer norms.
      attention: "auto", "xla" or "cudnn".
      remat: recompute the activations of the blocks in the backward pass to save memory.
    """

    families = {"vit": {}, "deit_distilled": {"distilled": True}}
    no_weight_decay = (*Backbone.no_weight_decay, r"(cls|dist|reg)_token|(dist_)?pos_embed")

    patch_size: Pair = (16, 16)
    embed_dim: Count = 768
    depth: Count = 12
    num_heads: Count = 12
    mlp_ratio: Positive = 4.0
    qkv_bias: bool = True
    qk_norm: bool = False
    init_values: float | None = None
    act_layer: Literal["gelu", "gelu_tanh", "quick_gelu"] = "gelu"
    swiglu_mlp: bool = False
    class_token: bool = True
    reg_tokens: Natural = 0
    no_embed_class: bool = False
    global_pool: Literal["token", "avg", "map"] = "token"
    pool_include_prefix: bool = False
    fc_norm: bool | None = None
    pre_norm: bool = False
    drop_rate: DropRate = 0.0
    pos_drop_rate: DropRate = 0.0
    proj_drop_rate: DropRate = 0.0
    drop_path_rate: DropRate = 0.0
    eps: Positive = 1e-6
    attention: Literal["auto", "xla", "cudnn"] = "auto"
    remat: bool = False

    @classmethod
    def normalise(cls, options: dict[str, Any]) -> dict[str, Any]:
        options = super().normalise(options)
        get = lambda name: cls.option(options, name)
        for axis, size, patch in zip(("height", "width"), get("img_size"), get("patch_size"), strict=True):
            if size % patch:
                raise SlimError(f"image {axis} {size} is not divisible by the patch size {patch}")
        if get("embed_dim") % get("num_heads"):
            raise SlimError(f"embed_dim={get('embed_dim')} is not divisible by num_heads={get('num_heads')}")
        if get("embed_dim") * get("mlp_ratio") < 1:
            raise SlimError(f"mlp_ratio={get('mlp_ratio')} of embed_dim={get('embed_dim')} leaves no hidden channel")
        if not get("class_token") and (get("global_pool") == "token" or get("distilled")):
            raise SlimError("class_token=False needs global_pool='avg' or 'map' and a model without distillation token")
        return options

    @classmethod
    def geometry_of(cls, options: dict[str, Any]) -> Geometry:
        get = lambda name: cls.option(options, name)
        (height, width), (ph, pw) = get("img_size"), get("patch_size")
        return Geometry(
            grid=(height // ph, width // pw),
            depth=get("depth"),
            dim=get("embed_dim"),
            heads=get("num_heads"),
            prefix_tokens=int(get("class_token")) + int(get("distilled")) + get("reg_tokens"),
            class_token=get("class_token"),
            num_classes=get("num_classes"),
            mlp_hidden=int(get("embed_dim") * get("mlp_ratio")),
        )

    @classmethod
    def named(cls) -> Mapping[str, NamedModel]:
        return vit_names.table()

    @classmethod
    def tiny(cls) -> dict[str, Any]:
        return {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 3, "num_heads": 2, "num_classes": 10}

    @classmethod
    def seen_in(cls, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any] | None:
        if "dist_token" in shapes:
            return {"kind": "distilled ViT", "family": "deit_distilled", **cls.sizes_in(shapes)}
        found = cls.sizes_in(shapes)
        return {"kind": "ViT", "family": "vit", **found} if {"depth", "patch_size"} <= found.keys() else None

    @classmethod
    def sizes_in(cls, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        """The options that a state dict of such names and shapes shows."""
        found: dict[str, Any] = {}
        for name in ("norm.weight", "fc_norm.weight", "cls_token", "pos_embed"):
            if shapes.get(name):
                found["embed_dim"] = shapes[name][-1]
                break
        if blocks := [int(match[1]) for name in shapes if (match := re.match(r"blocks\.(\d+)\.", name))]:
            found["depth"] = max(blocks) + 1
        if len(patches := shapes.get("patch_embed.proj.weight", ())) == 4:
            found["patch_size"], found["in_chans"] = patches[2], patches[1]
        return found | ({"reg_tokens": shapes["reg_token"][1]} if "reg_token" in shapes else {})

    @property
    def layer_groups(self) -> tuple[str, ...]:
        embedding = r"(patch_embed|norm_pre)/.*|(cls|dist|reg)_token|(dist_)?pos_embed"
        return embedding, *(f"blocks_{i}/.*" for i in range(self.depth))

    # The parts, and what a subclass may have otherwise ---------------------------------------------------------------

    def make_patches(self) -> Any:
        """The module "patch_embed"."""
        return PatchEmbed(self.patch_size, self.embed_dim, jnp.dtype(self.dtype), use_bias=not self.pre_norm)

    def make_embedding(self, kind: type[Embedding] = Embedding, **more: Any) -> Embedding:
        prefix = {"cls_token": self.class_token, "dist_token": self.distilled, "reg_token": self.reg_tokens}
        return kind(
            patches=self.make_patches,
            dim=self.embed_dim,
            prefix=tuple((name, int(n)) for name, n in prefix.items() if n),
            positions=self.position_count,
            on_patches=self.no_embed_class,
            drop=self.pos_drop_rate,
            pre_norm=self.pre_norm,
            eps=self.eps,
            dtype=jnp.dtype(self.dtype),
            rotary=self.rotary,
            **more,
        )

    def make_blocks(self) -> list[Block]:
        rates = [self.drop_path_rate * i / max(1, self.depth - 1) for i in range(self.depth)]
        return [self.block_class(**self.block_options, drop_path=rate) for rate in rates]

    def make_classifier(self, kind: type[Classifier] = Classifier) -> Classifier:
        return kind(
            num_classes=self.num_classes,
            dim=self.embed_dim,
            num_patches=self.geometry.num_patches,
            distilled=self.distilled,
            pool=self.global_pool,
            include_prefix=self.pool_include_prefix,
            norm_last=self.global_pool == "avg" if self.fc_norm is None else self.fc_norm,
            num_heads=self.num_heads,
            hidden=int(self.embed_dim * self.mlp_ratio),
            activation=self.act_layer,
            drop=self.drop_rate,
            eps=self.eps,
            dtype=jnp.dtype(self.dtype),
        )

    @property
    def position_count(self) -> int:
        """Tokens that `pos_embed` covers; 0 for none at all."""
        return self.geometry.num_patches + (0 if self.no_embed_class else self.geometry.prefix_tokens)

    @property
    def block_class(self) -> type[Block]:
        """The class of the layers."""
        return RematBlock if self.remat else Block

    @property
    def block_options(self) -> dict[str, Any]:
        """The options that all layers share."""
        return {
            "dim": self.embed_dim,
            "num_heads": self.num_heads,
            # packed: mlp_ratio counts the gate and what it gates, of which one half is left behind it
            "mlp_ratio": self.mlp_ratio / 2 if self.swiglu_mlp else self.mlp_ratio,
            "qkv_bias": self.qkv_bias,
            "qk_norm": self.qk_norm,
            "init_values": self.init_values,
            "proj_drop": self.proj_drop_rate,
            "eps": self.eps,
            "activation": "silu" if self.swiglu_mlp else self.act_layer,
            "gated": self.swiglu_mlp,
            "class_token": self.class_token,
            "rotary": self.rotary,
            "dtype": jnp.dtype(self.dtype),
            "backend": self.attention,
        }

    @property
    def rotary(self) -> Rotary | None:
        """How queries and keys turn by the places of their patches; None: positions are only added to the tokens."""
        return None

    def label_tokens(self, images: Array) -> tuple[Array, Array]:
        """As a labeller: (B, C) logits, and (B, N, C) what the classifier makes of every patch by itself.

        `apply(variables, images, method="label_tokens")`. It means something where the head reads pooled patches, as in
        the convolutional annotator of LV-ViT's authors, or where patches have a head of their own.

        Raises:
          SlimError: for a model without a head, or with a method: labels are due for every patch.
        """
        if not self.num_classes or self.slim.method != "dense":
            raise SlimError("label_tokens: a labeller is a dense model with a classifier")
        logits, aux = self(images, return_aux=True)
        return logits, self.classifier.patch_logits(aux.features[:, self.geometry.prefix_tokens :])
