"""Evo-LeViT (Xu et al. 2022): slow-fast token evolution within the stages of LeViT (levit/evo_levit.py of Evo-ViT)."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from slimvit_jax.backbones.base import recorded_layers, renamed
from slimvit_jax.backbones.evo_levit_layers import Evolving, EvoStage, Runs
from slimvit_jax.backbones.evo_levit_losses import EvoLevitLosses
from slimvit_jax.backbones.evo_levit_names import from_release, to_release
from slimvit_jax.backbones.levit import LeViT, per_stage
from slimvit_jax.backbones.levit_layers import Layer, LevitStem, halved
from slimvit_jax.errors import SlimError
from slimvit_jax.layers import truncated
from slimvit_jax.layers_conv import NormLinear, stem_flops, stem_layers
from slimvit_jax.ops import select
from slimvit_jax.options import Pair, Share, kind_of
from slimvit_jax.plan import Geometry, Plan
from slimvit_jax.slimming import Slimming
from slimvit_jax.tokens import Aux

Array = jax.Array


class EvoLeViT(LeViT, kw_only=True):
    """LeViT with a class token, positions in place of biases, and slow-fast evolution in every stage.

        a = mean over heads of the class token's attention; each layer mixes a <- (1 - alpha) a + alpha * new
        a stage's pruned layers run on [class, the int(N r) patches of largest a, the a-weighted mean of the others]
        the others += what the branches of those layers added to that mean
        a subsampling layer restores the grid; a is subsampled with it, mixed, and scaled to its old sum

    It has its method built in ("evo_levit"), and training and inference select alike. State-dict names are the
    release's (its `stage_blocks.*` repeat `blocks.*`). `aux.kept` has the indices of the slow patches in the first grid
    per selection; `aux.taps` "class_attention" the scores in front of each, "order" all indices, and in training
    "class_logits" (and "class_dist_logits"). Layers are counted as in LeViT, the representative among their tokens.

    Attributes (besides those of `LeViT`; a fused form is not offered):
      prune_ratio: the share of patches kept in each layer (1 for a dense one) and in the stages that select; a pair.
        None: the first two layers are dense, all others keep half. The first layer of all must be dense, and within a
        stage dense layers come first.
      stage_wise_prune: select once per stage; False: anew in front of every layer, by the ratios of the layers.
      learn_tradeoff: alpha of a layer is the sigmoid of its parameter; False: 0.5.
    """

    prune_ratio: tuple[tuple[Share, ...], tuple[Share, ...]] | None = None
    stage_wise_prune: bool = True
    learn_tradeoff: bool = True

    @classmethod
    def translate(
        cls, method: str | Slimming | None, options: dict[str, Any]
    ) -> tuple[str | Slimming | None, dict[str, Any]]:
        """The release's keywords: "distillation" is `distilled`; "down_ops" and "patch_size" only as released."""
        method, options = super().translate(method, options)
        renamed(options, "distillation", "distilled")
        if "patch_size" in options and kind_of(Pair).value("patch_size", options.pop("patch_size")) != (16, 16):
            raise SlimError("patch_size: LeViT's stem has stride 16")
        for op in kind_of(tuple[tuple[Any, ...], ...]).value("down_ops", options.pop("down_ops", ())):
            if len(op) > 1 and op[3:] != (4, 2, 2):
                raise SlimError(f"down_ops: {op} is not the released form ('Subsample', key_dim, heads, 4, 2, 2)")
        dense = method is None or type(method) is Slimming  # what selects is the backbone itself
        return EvoLevitLosses() if dense else method, options

    @classmethod
    def normalise(cls, options: dict[str, Any]) -> dict[str, Any]:
        options = super().normalise(options)
        if cls.option(options, "fused"):
            raise SlimError("fused=True: Evo-LeViT has no fused form")
        depths, ratios = options["depth"], cls.option(options, "prune_ratio")
        if ratios is None:
            layers = tuple(1.0 if i < 2 else 0.5 for i in range(sum(depths)))
            ratios = (layers, (0.5,) * len(depths))
        layers = per_stage("prune_ratio[0]", ratios[0], sum(depths))
        stages = per_stage("prune_ratio[1]", ratios[1], len(depths))
        if layers[0] != 1:
            raise SlimError("prune_ratio: the first layer must be dense (1): there are no scores before it")
        start = 0
        for depth, stage in zip(depths, stages, strict=True):
            own = layers[start : start + depth]
            if any(a < 1 and b == 1 for a, b in itertools.pairwise(own)):
                raise SlimError(f"prune_ratio={own}: within a stage the dense layers (1) come first")
            if stage == 1 and min(own) < 1:
                raise SlimError("prune_ratio: a stage that keeps everything (1) has no layers of less than 1")
            start += depth
        options["prune_ratio"] = (layers, stages)
        return options

    @classmethod
    def runs_of(cls, options: dict[str, Any]) -> tuple[Runs, ...]:
        """Per stage (blocks that evolve together, patches they keep), from normalised options."""
        (layers, stages), start = options["prune_ratio"], 0
        (height, width), runs = options["img_size"], list[Runs]()
        grid = (height // 16, width // 16)
        for i, (depth, ratio) in enumerate(zip(options["depth"], stages, strict=True)):
            grid = halved(grid) if i else grid
            n, own = grid[0] * grid[1], layers[start : start + depth]
            pruned = tuple(block for block in range(depth) if own[block] < 1)
            if not pruned:
                runs.append(())
            elif cls.option(options, "stage_wise_prune"):
                runs.append(((pruned, int(n * ratio)),))
            else:
                runs.append(tuple(((block,), int(n * own[block])) for block in pruned))
            start += depth
        return tuple(runs)

    @classmethod
    def geometry_of(cls, options: dict[str, Any]) -> Geometry:
        counts, left = [], []
        for layers, runs in zip(cls.stages_of(options), cls.runs_of(options), strict=True):
            kept = {block: k for members, k in runs for block in members}
            down = [layer for layer in layers if layer.down]
            blocks = [layer.tokens if i not in kept else kept[i] + 1 for i, layer in enumerate(layers[len(down) :])]
            counts += [layer.tokens for layer in down] + blocks
            left += [layer.left for layer in down] + blocks
        plan = Plan(tuple(counts), tuple(left))
        return dataclasses.replace(super().geometry_of(options), prefix_tokens=1, class_token=True, pyramid=plan)

    @property
    def runs(self) -> tuple[Runs, ...]:
        """See `runs_of`."""
        names = ("img_size", "depth", "prune_ratio", "stage_wise_prune")
        return self.runs_of({name: getattr(self, name) for name in names})

    @nn.compact
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
        """Classify images; `record_tokens` has the patches in raster order, after the last layer of a stage only."""
        self.check_images(images.shape)
        if scores is not None:
            raise SlimError("scores: Evo-LeViT ranks by its own class attention")
        dtype = jnp.dtype(self.dtype)
        x = LevitStem(stem_layers("4c", self.embed_dim[0]), nn.hard_swish, False, dtype, name="stem")(
            images, train, mask
        )
        batch, n, dim = x.shape
        cls_token = self.param("cls_token", nn.initializers.zeros, (1, 1, dim), jnp.float32).astype(dtype)
        poss = self.param("poss", truncated, (1, 1 + n, dim), jnp.float32).astype(dtype)
        x = jnp.concatenate([jnp.broadcast_to(cls_token, (batch, 1, dim)), x], axis=1) + poss
        state = Evolving(x, None, jnp.broadcast_to(jnp.arange(n, dtype=jnp.int32), (batch, n)))
        seen = []
        for i, (layers, runs) in enumerate(zip(self.stages, self.runs, strict=True)):
            stage = EvoStage(layers, self.drop_path_rate, False, dtype, runs, self.learn_tradeoff, name=f"stages_{i}")
            state = stage.run(state, train, mask)
            seen.append(select.raster_order(state.x[:, 1:], state.origin))
        logits, taps = self._heads(state.x.astype(jnp.float32), train, mask)
        if not return_aux:
            return logits
        taps |= {"class_attention": tuple(s for s, _ in state.chosen), "order": tuple(o for _, o in state.chosen)}
        taps |= {"tokens": tuple(seen)} if record_tokens is True else {}
        ends = tuple(itertools.accumulate(len(layers) for layers in self.stages))
        recorded = recorded_layers(record_tokens, ends[-1])
        grids = {layer: patches for layer, patches in zip(ends, seen, strict=True) if layer in recorded}
        counts = [k for runs in self.runs for _, k in runs]
        kept = tuple(order[:, :k] for (_, order), k in zip(state.chosen, counts, strict=True))
        features = jnp.concatenate([state.x[:, :1], seen[-1]], axis=1)
        return logits, Aux(self.slim.plan.token_counts, kept, None, features, taps, layer_grids=grids)

    def _heads(self, x: Array, train: bool, mask: Array | None = None) -> tuple[Array, dict[str, Any]]:
        mean, token = x[:, 1:].mean(axis=1), x[:, 0]
        if not self.num_classes:
            return mean, {}
        head = lambda name, y: NormLinear(self.num_classes, self.drop_rate, name=name)(y, train, mask)
        logits, taps = head("head", mean), {}
        if train or self.is_initializing():
            taps["class_logits"] = head("head_cls", token)
            if self.distilled:
                taps["class_dist_logits"] = head("head_cls_dist", token)
        if not self.distilled:
            return logits, taps
        dist = head("head_dist", mean)
        return (logits + dist) / 2, taps | {"head_logits": logits, "dist_logits": dist}

    def flops_parts(self) -> tuple[int, tuple[int, ...], int]:
        plan = self.slim.plan
        flat: list[Layer] = [layer for stage in self.stages for layer in stage]
        layers = tuple(layer.flops(1 + a, 1 + m) for layer, a, m in zip(flat, plan.attention, plan.mlp, strict=True))
        heads = self.embed_dim[-1] * self.num_classes * (2 if self.distilled else 1)
        return stem_flops(stem_layers("4c", self.embed_dim[0]), self.img_size, self.in_chans), layers, heads

    def from_official(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        return from_release(state, self.depth)

    def to_official(self, state: dict[str, Any]) -> dict[str, Any]:
        return to_release(state, self.depth, [[block for run in runs for block in run[0]] for runs in self.runs])
