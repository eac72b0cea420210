"""Evo-LeViT (Xu et al. 2022): slow-fast token evolution within the stages of LeViT (levit/evo_levit.py of Evo-ViT)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from slimvit_jax.backbones.base import Backbone, Method, renamed
from slimvit_jax.backbones.embedding import Embedding
from slimvit_jax.backbones.evo_levit_names import from_release, to_release
from slimvit_jax.backbones.evolution import Evolution, EvolvingGeometry
from slimvit_jax.backbones.levit import LeViT, per_stage
from slimvit_jax.errors import SlimError
from slimvit_jax.named import TIMMS, NamedModel, entry
from slimvit_jax.options import Pair, Share, kind_of
from slimvit_jax.plan import Geometry
from slimvit_jax.slimming import Slimming


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

    families = {"evo_levit": {}}
    no_weight_decay = (*Backbone.no_weight_decay, r"(.*/)?poss|cls_token")

    prune_ratio: tuple[tuple[Share, ...], tuple[Share, ...]] | None = None
    stage_wise_prune: bool = True
    learn_tradeoff: bool = True

    @classmethod
    def translate(cls, method: Method, options: dict[str, Any]) -> tuple[Method, dict[str, Any]]:
        """The release's keywords: "distillation" is `distilled`; "down_ops" and "patch_size" only as released."""
        method, options = super().translate(method, options)
        renamed(options, "distillation", "distilled")
        if "patch_size" in options and kind_of(Pair).value("patch_size", options.pop("patch_size")) != (16, 16):
            raise SlimError("patch_size: LeViT's stem has stride 16")
        for op in kind_of(tuple[tuple[Any, ...], ...]).value("down_ops", options.pop("down_ops", ())):
            if len(op) > 1 and op[3:] != (4, 2, 2):
                raise SlimError(f"down_ops: {op} is not the released form ('Subsample', key_dim, heads, 4, 2, 2)")
        dense = method is None or type(method) is Slimming  # what selects is the backbone itself
        return Evolution() if dense else method, options

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
    def geometry_of(cls, options: dict[str, Any]) -> Geometry:
        (ratios, stages), runs, layer = options["prune_ratio"], list[tuple[int, int, int]](), 0
        each = iter(ratios)
        for sizes, ratio in zip(cls.stages_of(options), stages, strict=True):
            n, last = sizes[-1].tokens, layer + len(sizes)
            own = [(layer + i, next(each)) for i, size in enumerate(sizes, start=1) if not size.down]
            pruned, layer = [(number, share) for number, share in own if share < 1], last
            if pruned and cls.option(options, "stage_wise_prune"):
                runs.append((pruned[0][0], last, int(n * ratio)))
            else:
                runs += [(number, number, int(n * share)) for number, share in pruned]
        more = {"prefix_tokens": 1, "class_token": True, "learned": cls.option(options, "learn_tradeoff")}
        return EvolvingGeometry(**vars(super().geometry_of(options)) | more, runs=tuple(runs))

    @classmethod
    def named(cls) -> Mapping[str, NamedModel]:
        """LeViT's sizes, for images of two sizes, as in levit/ of Evo-ViT's release."""
        sizes = ((name, side, tail) for name in cls.released() for side, tail in ((224, ""), (384, "_384")))
        build = lambda name, side: entry("evo_levit", cls.released()[name] | {"img_size": side}, TIMMS)
        return {f"evo_{name}{tail}": build(name, side) for name, side, tail in sizes}

    @classmethod
    def tiny(cls) -> dict[str, Any]:
        return super().tiny() | {"depth": (2, 2)}  # the first two layers are dense

    def make_embedding(self) -> Embedding:
        positions = 1 + self.geometry.num_patches
        return Embedding(self.make_stem, self.embed_dim[0], (("cls_token", 1),), positions, position_name="poss")

    def from_official(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        return from_release(state, self.depth)

    def to_official(self, state: dict[str, Any]) -> dict[str, Any]:
        assert self.prune_ratio is not None  # a model's own is the one in use
        each = iter(self.prune_ratio[0])
        return to_release(state, self.depth, [[i for i in range(n) if next(each) < 1] for n in self.depth])
