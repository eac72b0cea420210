"""LeViT (Graham et al. 2021) with timm's options, parameter names and numbers (timm/models/levit.py)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from slimvit_jax.backbones.base import Backbone
from slimvit_jax.backbones.embedding import Embedding
from slimvit_jax.backbones.levit_layers import Layer, LevitBlock, LevitStage
from slimvit_jax.errors import SlimError
from slimvit_jax.layers_conv import ConvNorm, ConvStem, NormLinear, stem_layers
from slimvit_jax.named import TIMMS, NamedModel, entry
from slimvit_jax.options import Count, DropRate, Positive, one_or_several
from slimvit_jax.plan import Geometry, halved
from slimvit_jax.slimming import Slimming
from slimvit_jax.tokens import Tokens

STRIDE = 16  # of the stem
DOWN_ATTN_RATIO, DOWN_MLP_RATIO = 4, 2  # of the subsampling layers, fixed in timm


Counts = Annotated[tuple[int, ...], one_or_several(Count)]
Ratios = Annotated[tuple[float, ...], one_or_several(Positive)]


def per_stage(name: str, value: Any, stages: int) -> tuple[Any, ...]:
    """One value per stage; one number stands for all. A SlimError for another number of them."""
    values = value if isinstance(value, tuple) else (value,) * stages
    if len(values) != stages:
        raise SlimError(f"{name}={value!r} must be one value, or one for each of the {stages} stages")
    return values


class LevitStem(ConvStem):
    """LeViT's convolutions, under timm's names."""

    def layer(self, i: int, features: int, stride: int, x: Array, train: bool, mask: Array | None) -> Array:
        return ConvNorm(features, stride, self.fused, self.dtype, name=f"conv{i}")(x, train, mask)


class LevitClassifier(nn.Module):
    """Heads that read the mean of the patches; in training, with a class token, as many that read that one."""

    num_classes: int
    distilled: bool
    dim: int
    drop: float
    fused: bool

    def normalised(self, x: Array) -> Array:
        """There is no final norm."""
        return x

    def flops(self, tokens: int, prefix: int) -> int:
        """Multiply-adds of the heads that inference has."""
        return self.dim * self.num_classes * (2 if self.distilled else 1)

    @nn.compact
    def __call__(self, tokens: Tokens, normed: Tokens, method: Slimming, train: bool) -> tuple[Array, dict[str, Array]]:
        """(B, num_classes) float32 logits and taps."""
        head = lambda name, y: NormLinear(self.num_classes, self.drop, self.fused, name=name)(
            y, train, tokens.image_mask
        )
        x = tokens.x.astype(jnp.float32)
        mean = x[:, tokens.prefix :].mean(axis=1)
        taps: dict[str, Array] = {}
        if not self.num_classes:
            return mean, taps
        logits = head("head", mean)
        if tokens.prefix and (train or self.is_initializing()):
            taps["class_logits"] = head("head_cls", x[:, 0])
            if self.distilled:
                taps["class_dist_logits"] = head("head_cls_dist", x[:, 0])
        if not self.distilled:
            return logits, taps
        dist = head("head_dist", mean)
        return (logits + dist) / 2, taps | {"head_logits": logits, "dist_logits": dist}


class LeViT(Backbone, kw_only=True):
    """Stages of attention on a shrinking grid, batch norm everywhere, no class token.

    Only the dense model: its subsampling attention and its biases need every patch at its place, so that methods which
    drop or merge patches are refused (see `Geometry.subsamples`). The layers of `aux.token_counts` and `flops` are the
    blocks and the subsampling layers, which count the tokens they take in.

    Attributes (besides those of `Backbone`; img_size must be divisible by 16):
      embed_dim, depth: width and layers of each stage.
      num_heads, key_dim: heads, and channels of each for queries and keys: one number, or one per stage.
      attn_ratio, mlp_ratio: channels per head of the values over key_dim, hidden width over the stage's width.
      drop_rate, drop_path_rate: dropout of the heads, stochastic depth of every layer.
      fused: batch norms are folded into the linear layers; inference only, see `fuse`.
    """

    families = {"levit": {}, "levit_distilled": {"distilled": True}}
    no_weight_decay = (*Backbone.no_weight_decay, ".*attention_biases")

    embed_dim: Counts = (256, 384, 512)
    depth: Counts = (4, 4, 4)
    num_heads: Counts = (4, 6, 8)
    key_dim: Counts = (32, 32, 32)
    attn_ratio: Ratios = (2.0, 2.0, 2.0)
    mlp_ratio: Ratios = (2.0, 2.0, 2.0)
    drop_rate: DropRate = 0.0
    drop_path_rate: DropRate = 0.0
    fused: bool = False

    @classmethod
    def normalise(cls, options: dict[str, Any]) -> dict[str, Any]:
        options = super().normalise(options)
        widths = cls.option(options, "embed_dim")
        stages = len(widths) if isinstance(widths, tuple) else 1
        if not stages:
            raise SlimError("embed_dim=() must have a width for each stage, at least one")
        for name in ("embed_dim", "depth", "num_heads", "key_dim", "attn_ratio", "mlp_ratio"):
            options[name] = per_stage(name, _shared(cls.option(options, name), name in options, stages), stages)
        for axis, size in zip(("height", "width"), cls.option(options, "img_size"), strict=True):
            if size % STRIDE:
                raise SlimError(f"image {axis} {size} is not divisible by {STRIDE}, the stride of LeViT's stem")
        if options["embed_dim"][0] % 8:
            raise SlimError(f"embed_dim={options['embed_dim']}: the first must be divisible by 8 for the stem")
        for width, key in zip(options["embed_dim"][:-1], options["key_dim"][:-1], strict=True):
            if width < key:
                raise SlimError(f"key_dim={key} is wider than embed_dim={width}: no head is left to subsample with")
        return options

    @classmethod
    def stages_of(cls, options: dict[str, Any]) -> tuple[tuple[Layer, ...], ...]:
        """The sizes of all layers by stage, from normalised options."""
        get = lambda name: cls.option(options, name)
        height, width = get("img_size")
        grid, in_dim, stages = (height // STRIDE, width // STRIDE), get("embed_dim")[0], []
        for i, (dim, depth, heads, key) in enumerate(
            zip(get("embed_dim"), get("depth"), get("num_heads"), get("key_dim"), strict=True)
        ):
            layers = []
            if i:
                down_key = get("key_dim")[i - 1]
                value, hidden = DOWN_ATTN_RATIO * down_key, DOWN_MLP_RATIO * dim
                layers.append(Layer(grid, in_dim, dim, in_dim // down_key, down_key, value, hidden, True))
                grid = halved(grid)
            value, hidden = int(get("attn_ratio")[i] * key), int(dim * get("mlp_ratio")[i])
            layers += [Layer(grid, dim, dim, heads, key, value, hidden, False)] * depth
            stages.append(tuple(layers))
            in_dim = dim
        return tuple(stages)

    @classmethod
    def geometry_of(cls, options: dict[str, Any]) -> Geometry:
        layers = [layer for stage in cls.stages_of(options) for layer in stage]
        return Geometry(
            grid=layers[0].grid,
            depth=len(layers),
            dim=layers[0].dim,
            heads=layers[0].heads,
            prefix_tokens=0,
            class_token=False,
            num_classes=cls.option(options, "num_classes"),
            subsamples=tuple(number for number, layer in enumerate(layers, start=1) if layer.down),
        )

    @property
    def stages(self) -> tuple[tuple[Layer, ...], ...]:
        """The sizes of all layers by stage."""
        return self.stages_of(self.options())

    @property
    def patch_size(self) -> tuple[int, int]:
        """What one token of the first grid stands for."""
        return STRIDE, STRIDE

    def make_stem(self) -> LevitStem:
        layers = stem_layers("4c", self.embed_dim[0])
        return LevitStem(layers, nn.hard_swish, self.fused, jnp.dtype(self.dtype), name="stem")

    def make_embedding(self) -> Embedding:
        return Embedding(self.make_stem, self.embed_dim[0])

    def make_blocks(self) -> list[LevitStage]:
        shared = (self.geometry.prefix_tokens, self.drop_path_rate, self.fused, jnp.dtype(self.dtype))
        return [LevitStage(layers, *shared, name=f"stages_{i}") for i, layers in enumerate(self.stages)]

    def make_classifier(self) -> LevitClassifier:
        return LevitClassifier(self.num_classes, self.distilled, self.embed_dim[-1], self.drop_rate, self.fused)

    @property
    def layers(self) -> list[LevitBlock]:
        return [layer for stage in self.blocks for layer in stage.in_order()]

    @classmethod
    def named(cls) -> Mapping[str, NamedModel]:
        return {name: entry("levit", kwargs, TIMMS, f"{name}.fb_dist_in1k") for name, kwargs in cls.released().items()}

    @classmethod
    def released(cls) -> dict[str, dict[str, Any]]:
        """The options of the released sizes by name."""
        models = {}
        for size, widths, depth, heads, key_dim in (
            ("128s", (128, 256, 384), (2, 3, 4), (4, 6, 8), 16),
            ("128", (128, 256, 384), (4, 4, 4), (4, 8, 12), 16),
            ("192", (192, 288, 384), (4, 4, 4), (3, 5, 6), 32),
            ("256", (256, 384, 512), (4, 4, 4), (4, 6, 8), 32),
            ("384", (384, 512, 768), (4, 4, 4), (6, 9, 12), 32),
        ):
            stages = {"embed_dim": widths, "depth": depth, "num_heads": heads, "key_dim": key_dim}
            models[f"levit_{size}"] = {"img_size": 224, **stages, "num_classes": 1000, "distilled": True}
        return models

    @classmethod
    def tiny(cls) -> dict[str, Any]:
        stages = {"embed_dim": (16, 24), "depth": (1, 1), "num_heads": (2, 3), "key_dim": 8}
        return {"img_size": 64, **stages, "num_classes": 10}

    @classmethod
    def seen_in(cls, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any] | None:
        if "stem.conv1.linear.weight" not in shapes or not any(name.startswith("stages.") for name in shapes):
            return None
        pattern = re.compile(r"stages\.(\d+)\.blocks\.(\d+)\.mlp\.ln2\.linear\.weight")
        layers = [match for name in sorted(shapes) if (match := pattern.fullmatch(name))]
        widths = tuple(shapes[layer.string][0] for layer in layers if layer[2] == "0")
        depths = tuple(len([1 for layer in layers if layer[1] == n]) for n in sorted({m[1] for m in layers}))
        return {"kind": "LeViT", "family": "levit", "embed_dim": widths, "depth": depths}

    @property
    def layer_groups(self) -> tuple[str, ...]:
        groups = ["stem/.*|cls_token|poss"]
        for i, depth in enumerate(self.depth):
            groups += [f"stages_{i}/downsample/.*"] if i else []
            groups += [f"stages_{i}/blocks_{block}/.*" for block in range(depth)]
        return tuple(groups)

    @property
    def fuse_partners(self) -> Mapping[str, str]:
        return {"bn": "linear"}

    def fused_parameter(self, path: tuple[str, ...], array: Array) -> Array:
        if path[-1] != "attention_biases":
            return array
        stage = next(int(name.removeprefix("stages_")) for name in path if name.startswith("stages_"))
        return array[:, self.stages[stage][0 if "downsample" in path else -1].bias_index]

    def layer_costs(self) -> list[Callable[[int, int], int]]:
        return [layer.flops for stage in self.stages for layer in stage]


def _shared(value: Any, given: bool, stages: int) -> Any:
    """A default that is meant for three stages, for any number of them; what was given, as it is."""
    return value if given or len(value) == stages else value[0]
