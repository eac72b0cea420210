"""ViT and DeiT with timm's options, parameter names and numbers (timm/models/vision_transformer.py, deit.py)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from slimvit_jax.backbones.base import Backbone, recorded_layers
from slimvit_jax.block import Block, RematBlock
from slimvit_jax.encoder import encode
from slimvit_jax.errors import SlimError
from slimvit_jax.layers import LayerNorm, Linear, PatchEmbed, truncated
from slimvit_jax.layers_pool import AttentionPool, mean_pool, pool_flops, weighted
from slimvit_jax.ops.rotary import Rotary
from slimvit_jax.options import Count, DropRate, Natural, Pair, Positive
from slimvit_jax.plan import Geometry
from slimvit_jax.tokens import Aux, Tokens

Array = jax.Array


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

    def setup(self) -> None:
        dtype = jnp.dtype(self.dtype)
        self.patch_embed = self.patch_embedding()
        tiny = nn.initializers.normal(1e-6)
        if self.class_token:
            self.cls_token = self.param("cls_token", tiny, (1, 1, self.embed_dim), jnp.float32)
        if self.distilled:
            self.dist_token = self.param("dist_token", truncated, (1, 1, self.embed_dim), jnp.float32)
        if self.reg_tokens:
            self.reg_token = self.param("reg_token", tiny, (1, self.reg_tokens, self.embed_dim), jnp.float32)
        if self.position_count:
            shape = (1, self.position_count, self.embed_dim)
            self.pos_embed = self.param("pos_embed", truncated, shape, jnp.float32)
        self.pos_drop = nn.Dropout(self.pos_drop_rate)
        if self.pre_norm:
            self.norm_pre = LayerNorm(self.eps, dtype)
        rates = [self.drop_path_rate * i / max(1, self.depth - 1) for i in range(self.depth)]
        self.blocks = [self.block_class(**self.block_options, drop_path=rate) for rate in rates]
        if self._norm_after_pooling:
            self.fc_norm_layer = LayerNorm(self.eps, dtype, name="fc_norm")
        else:
            self.norm = LayerNorm(self.eps, dtype)
        if self.global_pool == "map":
            sizes = (self.embed_dim, self.num_heads, int(self.embed_dim * self.mlp_ratio))
            self.attn_pool = AttentionPool(*sizes, self.act_layer, self.eps, dtype)
        self.head_drop = nn.Dropout(self.drop_rate)
        if self.num_classes:
            self.head = Linear(self.num_classes, dtype=jnp.float32)
            if self.distilled:
                self.head_dist = Linear(self.num_classes, dtype=jnp.float32)

    # What a subclass may have otherwise ------------------------------------------------------------------------------

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
            "residual_scale": self.residual_scale,
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

    @property
    def residual_scale(self) -> float:
        """Divides both branches of every layer."""
        return 1.0

    @property
    def position_count(self) -> int:
        """Tokens that `pos_embed` covers; 0 for none at all."""
        return self.geometry.num_patches + (0 if self.no_embed_class else self.geometry.prefix_tokens)

    def patch_embedding(self) -> nn.Module:
        """The module "patch_embed"."""
        return PatchEmbed(self.patch_size, self.embed_dim, jnp.dtype(self.dtype), use_bias=not self.pre_norm)

    def embed_flops(self) -> int:
        """Multiply-adds of the patch embedding."""
        return self.geometry.num_patches * self.patch_size[0] * self.patch_size[1] * self.in_chans * self.embed_dim

    def _patches(self, images: Array, train: bool, mask: Array | None) -> tuple[Array, dict[str, Array]]:
        """(B, N, D) tokens without positions, and taps."""
        return self.patch_embed(images), {}

    def _positions(self) -> Array:
        return self.pos_embed

    @property
    def _norm_after_pooling(self) -> bool:
        return self.global_pool == "avg" if self.fc_norm is None else self.fc_norm

    def __call__(
        self,
        images: Array,
        train: bool = False,
        *,
        return_aux: bool = False,
        record_tokens: bool | Sequence[int] = False,
        scores: Array | None = None,
        mask: Array | None = None,
    ) -> Array | tuple[Array, Aux]:
        """Classify images.

        Args:
          images: (B, H, W, C) floats, prepared as the weights expect (`transform_for`).
          train: the training path: dropout, stochastic depth and the method's training form; needs rngs={"dropout"}.
          return_aux: also return an `Aux`.
          record_tokens: 1-based layers whose features `grid_features` is to have; True: all layers, and their patch
            tokens in `aux.taps["tokens"]` as they are held.
          mask: (B,), 0 for rows that only fill up a training batch: batch norms and MixToken leave them out.
          scores: (B, N) in raster order, used by the method in place of its own prediction (random lives, an oracle).

        Returns:
          (B, num_classes) float32 logits, or (logits, aux).

        Raises:
          SlimError: for images of another shape, layers that there are not.
        """
        self.check_images(images.shape)
        recorded = recorded_layers(record_tokens, self.depth)
        path = train or self.is_initializing()  # so that init creates the parameters that only training uses
        tokens = self.embed(images, train, mask)
        if scores is not None:
            if scores.shape != tokens.origin.shape:
                raise SlimError(f"scores of shape {scores.shape}; expected one per patch, {tokens.origin.shape}")
            tokens = tokens.remember(given_scores=scores.astype(jnp.float32))
        tokens, trail, after = encode(self.blocks, self.slim, tokens, path, recorded, record_tokens is True)
        raw, (norm, tokens, logits, taps) = tokens, self.read(tokens, train)
        if not return_aux:
            return logits
        plan = self.slim.train_plan if path else self.slim.plan
        aux = Aux(
            token_counts=plan.token_counts,
            kept=None if self.slim.merges else tokens.kept,
            scores=tokens.memory.get("scores"),
            features=tokens.x,
            taps={**tokens.taps, **taps},
            grid=None if trail.in_raster_order(raw) else trail.patches(raw, tokens.patches, norm),
        )
        grids = {layer: way.patches(held, norm(held.patches), norm) for layer, (held, way) in after.items()}
        if self.depth in grids:  # what `finish` has put together
            grids[self.depth] = tokens.patches if aux.grid is None else aux.grid
        return logits, aux.replace(layer_grids=grids)

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
        return logits, self._patch_logits(aux.features[:, self.geometry.prefix_tokens :])

    def _patch_logits(self, patches: Array) -> Array:
        return self.head(self.fc_norm_layer(patches) if self._norm_after_pooling else patches)

    def flops_parts(self) -> tuple[int, tuple[int, ...], int]:
        plan, dim, prefix = self.slim.plan, self.embed_dim, self.geometry.prefix_tokens
        block = self.block_class(**self.block_options, parent=None)
        layers = tuple(block.flops(prefix + a, prefix + m) for a, m in zip(plan.attention, plan.mlp, strict=True))
        held = plan.mlp[-1] + (prefix if self.pool_include_prefix else 0)
        pool = pool_flops(held, dim, int(dim * self.mlp_ratio)) if self.global_pool == "map" else 0
        return self.embed_flops(), layers, pool + dim * self.num_classes * (2 if self.distilled else 1)

    def embed(self, images: Array, train: bool, mask: Array | None) -> Tokens:
        """The tokens in front of the first layer."""
        patches, taps = self._patches(images, train, mask)
        batch, n, _ = patches.shape
        names = {"cls_token": self.class_token, "dist_token": self.distilled, "reg_token": self.reg_tokens > 0}
        prefix = [getattr(self, name) for name, there in names.items() if there]
        front = [jnp.broadcast_to(p.astype(patches.dtype), (batch, *p.shape[1:])) for p in prefix]
        position = self._positions().astype(patches.dtype) if self.position_count else 0.0
        if self.no_embed_class:
            x = jnp.concatenate([*front, patches + position], axis=1)
        else:
            x = jnp.concatenate([*front, patches], axis=1) + position
        x = self.pos_drop(x, deterministic=not train)
        if self.pre_norm:
            x = self.norm_pre(x)
        origin = jnp.broadcast_to(jnp.arange(n, dtype=jnp.int32), (batch, n))
        places = None if self.rotary is None else jnp.asarray(self.rotary.coordinates())
        return Tokens(x=x, origin=origin, prefix=self.geometry.prefix_tokens, taps=taps, places=places)

    def read(self, tokens: Tokens, train: bool) -> tuple[Any, Tokens, Array, dict[str, Array]]:
        """The last norm, the tokens of the last layer normalised, the logits, and taps."""
        norm = (lambda x: x) if self._norm_after_pooling else self.norm
        mean = norm(self._mean(tokens, train)) if self.slim.pools_patches else None
        tokens = tokens.replace(x=norm(tokens.x))
        return norm, tokens, *self._classify(tokens, mean, train)

    def _mean(self, tokens: Tokens, train: bool) -> Array:
        include = self.pool_include_prefix and not self.slim.pools_patches
        return mean_pool(tokens, self.slim.pooling_weights(tokens, train), self.geometry.num_patches, include)

    def _classify(self, tokens: Tokens, mean: Array | None, train: bool) -> tuple[Array, dict[str, Array]]:
        if mean is not None:
            pooled = mean
        elif self.global_pool == "token":
            pooled = tokens.x[:, 0]
        elif self.global_pool == "map":
            weights, n = self.slim.pooling_weights(tokens, train), self.geometry.num_patches
            pooled = self.attn_pool(*weighted(tokens, weights, n, self.pool_include_prefix))
        else:
            pooled = self._mean(tokens, train)
        if self._norm_after_pooling:
            pooled = self.fc_norm_layer(pooled)
        pooled = self.head_drop(pooled, deterministic=not train)
        if not self.num_classes:
            return pooled.astype(jnp.float32), {}
        if not self.distilled:
            return self.head(pooled), {}
        head = self.head(pooled)
        dist = self.head_dist(self.head_drop(tokens.x[:, 1], deterministic=not train))
        return (head + dist) / 2, {"head_logits": head, "dist_logits": dist}
