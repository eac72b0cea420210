"""LeViT (Graham et al. 2021) with timm's options, parameter names and numbers (timm/models/levit.py)."""

from __future__ import annotations

from typing import Annotated, Any

import jax.numpy as jnp
import numpy as np

from slimvit_jax.backbones.base import Backbone
from slimvit_jax.backbones.levit_layers import (
    Layer,
    LevitBlock,
    LevitClassifier,
    LevitEmbedding,
    LevitStage,
    LevitStem,
)
from slimvit_jax.errors import SlimError
from slimvit_jax.layers_conv import stem_layers
from slimvit_jax.options import Count, DropRate, Positive, one_or_several
from slimvit_jax.plan import Geometry, halved

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

    def make_embedding(self) -> LevitEmbedding:
        return LevitEmbedding(self.embed_dim[0], self.geometry.class_token, self.fused, jnp.dtype(self.dtype))

    def make_blocks(self) -> list[LevitStage]:
        shared = (self.geometry.prefix_tokens, self.drop_path_rate, self.fused, jnp.dtype(self.dtype))
        return [LevitStage(layers, *shared, name=f"stages_{i}") for i, layers in enumerate(self.stages)]

    def make_classifier(self) -> LevitClassifier:
        return LevitClassifier(self.num_classes, self.distilled, self.drop_rate, self.fused)

    @property
    def layers(self) -> list[LevitBlock]:
        return [layer for stage in self.blocks for layer in stage.in_order()]

    def bias_index(self, path: tuple[str, ...]) -> np.ndarray:
        """The (queries, keys) index into the attention biases at `path` of the parameters."""
        stage = next(int(name.removeprefix("stages_")) for name in path if name.startswith("stages_"))
        return self.stages[stage][0 if "downsample" in path else -1].bias_index

    def flops_parts(self) -> tuple[int, tuple[int, ...], int]:
        plan, prefix = self.slim.plan, self.geometry.prefix_tokens
        flat = [layer for stage in self.stages for layer in stage]
        layers = tuple(
            layer.flops(prefix + a, prefix + m) for layer, a, m in zip(flat, plan.attention, plan.mlp, strict=True)
        )
        stem = LevitStem(stem_layers("4c", self.embed_dim[0])).flops(self.img_size, self.in_chans)
        return stem, layers, self.embed_dim[-1] * self.num_classes * (2 if self.distilled else 1)


def _shared(value: Any, given: bool, stages: int) -> Any:
    """A default that is meant for three stages, for any number of them; what was given, as it is."""
    return value if given or len(value) == stages else value[0]
