"""DiffRate (Chen et al. 2023): the last by class attention are dropped, the next merged, numbers per layer are data."""

from __future__ import annotations

import functools
import importlib.resources
import json
from collections.abc import Sequence
from numbers import Real
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from slimvit_jax.errors import SlimError, unknown
from slimvit_jax.methods.merging import Merging
from slimvit_jax.methods.ranking import ranking
from slimvit_jax.ops import merge, select
from slimvit_jax.options import Count, Kind, Share
from slimvit_jax.plan import Geometry, Plan
from slimvit_jax.slimming import Probe
from slimvit_jax.tokens import Tokens

Array = jax.Array


def _read_preset(value: Any) -> str:
    if isinstance(value, Real) and not isinstance(value, bool):  # 2.9 of a command line or of JSON
        return str(float(value))
    if not isinstance(value, str):
        raise ValueError(value)
    return value


Preset = Annotated[str, Kind("be the name of published counts, such as '2.9'", _read_preset)]
#: For every layer the patches that stay or merge, and of these the patches that stay.
Counts = tuple[tuple[int, int], ...]


class DiffRate(Merging, kw_only=True):
    """In every layer the patches that the class token attends to least are dropped, and the next merged into the rest.

        a_i     = 1/H sum_h softmax(q_cls K^T / sqrt(d) + log s)_hi     of this very layer
        order   = patches by descending a;  those behind the p-th vanish
        merged  : those behind the m-th of these p, each into the most similar of the first m, by the cosine of x
        x_j    <- plain mean of x_j and all that join it,   s_j <- s_j + sum_i s_i cos_ij
        attention = softmax(q k^T / sqrt(d) + log s)                    (proportional attention)

    Between attention and MLP of every layer; p and m are data, one pair per layer, which the authors found by gradient
    descent and publish. Official: DiffRate/patch/deit.py, merge.py and compression_rate.json of OpenGVLab/DiffRate; its
    counts have the class token in them, and so have the options here, whatever other prefix tokens there are. A count
    above what a layer holds changes nothing there. Average pooling weighs the tokens by s, as in its patch of MAE.

    Deviations: other prefix tokens are protected like the class token (a distilled model crashes in the release).
    The similarity scales the size, so a negative one lowers it and the release can take the logarithm of a negative
    number: here no size falls below 1e-6. A count of the class token alone is refused (merged there, sizes become
    minus infinity in the release). A layer that removes nothing does not sort. Training does what inference does,
    without the release's sizes of at least 1; no gradient flows through the choice. Imposed scores replace a for tokens
    that are still one patch.

    Cost per layer: (P + n) D for the class token's row, (p - m) m D for the similarities, 3 (p - m) D for the merges.

    aux.kept is None, since what is held is made of several patches; aux.taps["owner"] has -1 for those that vanished.
    aux.scores is a of the first layer that removes something, aux.taps["class_attention"] (B, n) of all these layers.

    Attributes:
      prune_kept_num: p per layer, the class token counted; None: nothing is dropped.
      merge_kept_num: m per layer, the class token counted; None: nothing is merged.
      preset: published counts in place of both, by their GFLOPs ("2.9"), for a model of that width, depth and number
        of patches. For one of ViT-B's they are DeiT-B's, and MAE-B's with "mae:" in front ("mae:11.5").
      keep_rate: in place of counts: the share of the N patches that a layer computes on average. From the second layer
        on each removes the same number, half dropped, half merged. 0.7 where nothing else is given.
    """

    method = "diffrate"
    needs_class_token = True
    in_place_of_keep_rate = ("prune_kept_num", "merge_kept_num", "preset")

    prune_kept_num: tuple[Count, ...] | None = None
    merge_kept_num: tuple[Count, ...] | None = None
    preset: Preset | None = None
    keep_rate: Share | None = None

    def check_options(self) -> None:
        given = [name for name in (*self.in_place_of_keep_rate, "keep_rate") if getattr(self, name) is not None]
        if len(given) > 1 and set(given) & {"preset", "keep_rate"}:
            raise SlimError(f"{' and '.join(given)} are given: counts, a preset or a keep rate, not several of these")

    def check_geometry(self, geometry: Geometry) -> None:
        super().check_geometry(geometry)
        self._counts(geometry)

    @property
    def counts(self) -> Counts:
        """(patches that stay or merge, patches that stay) of every layer; equal where nothing is merged."""
        return self._counts(self.bound)

    def _counts(self, geometry: Geometry) -> Counts:
        if self.preset is not None:
            return _preset(self.preset, geometry)
        lists = {"prune_kept_num": self.prune_kept_num, "merge_kept_num": self.merge_kept_num}
        given = {name: counts for name, counts in lists.items() if counts is not None}
        if not given:
            return _even(geometry, 0.7 if self.keep_rate is None else self.keep_rate)
        least = 1 + geometry.class_token
        for name, counts in given.items():
            if len(counts) != geometry.depth:
                raise SlimError(f"{name}={counts} has {len(counts)} entries for {geometry.depth} layers")
            if min(counts) < least:
                raise SlimError(f"{name}={counts} must not fall below {least}, the class token and one patch")
        everything = (geometry.num_patches + geometry.class_token,) * geometry.depth
        prune, merged = (everything if counts is None else counts for counts in lists.values())
        return _held(geometry.num_patches, prune, merged, geometry.class_token)

    @property
    def plan(self) -> Plan:
        left = tuple(m for _, m in self.counts)
        return Plan((self.bound.num_patches, *left[:-1]), left)

    def extra_flops(self) -> dict[int, int]:
        dim, cost = self.bound.dim, {}
        for layer, (n, (p, m)) in enumerate(zip(self.plan.attention, self.counts, strict=True), start=1):
            if m < n:
                cost[layer] = (self.bound.prefix_tokens + n + (p - m) * m + 3 * (p - m)) * dim
        return cost

    def needs(self, layer: int, train: bool) -> tuple[str, ...]:
        return ("class_attention",) if self.merged[layer - 1] else ()

    def after_attention(self, tokens: Tokens, layer: int, probe: Probe, train: bool) -> Tokens:
        if not self.merged[layer - 1]:
            return tokens
        attention = probe["class_attention"].mean(axis=1)[:, tokens.prefix :]
        tokens = tokens.tap("class_attention", attention)
        if "scores" not in tokens.memory:  # of the first such layer, where the patches still are in raster order
            tokens = tokens.remember(scores=attention)
        stay_or_merge, stay = self.counts[layer - 1]
        order = select.top(ranking(tokens, attention), stay_or_merge)
        matching, cosine = merge.ranked_matching(tokens.x, order, stay, tokens.prefix)
        x, _ = merge.merge_weighted(matching, tokens.x, jnp.ones(tokens.x.shape[:2], jnp.float32))
        tokens = self.reduced(tokens, matching, x, merge.merge_scaled_sizes(matching, tokens.memory["size"], cosine))
        only_dropped = stay == stay_or_merge and tokens.log_weight is None  # so far: all sizes are 1
        return tokens if only_dropped else tokens.replace(log_weight=jnp.log(tokens.memory["size"]))


@functools.cache
def presets() -> dict[str, Any]:
    """The published counts: model to {"dim", "depth", "patches", "counts": {GFLOPs: [prune_kept_num, merge_kept_num]}}.

    Data of compression_rate.json in OpenGVLab/DiffRate, whose CAFormer, no backbone here, is left out.
    """
    return json.loads(importlib.resources.files("slimvit_jax.methods").joinpath("diffrate.json").read_text("utf-8"))


def _preset(preset: str, geometry: Geometry) -> Counts:
    """`DiffRate.counts` of a preset."""
    shape = lambda of: f"width {of['dim']}, depth {of['depth']} and {of['patches']} patches"
    ours = {"dim": geometry.dim, "depth": geometry.depth, "patches": geometry.num_patches}
    choices: dict[str, Any] = {}
    for model, entry in presets().items():  # DeiT's before MAE's
        if all(entry[key] == value for key, value in ours.items()):
            family = model.split("_")[0]
            choices |= {f"{family}:{name}": counts for name, counts in entry["counts"].items()}
            choices |= {name: counts for name, counts in entry["counts"].items() if name not in choices}
    if not choices:
        raise SlimError(
            f"preset={preset!r}: counts are published for {'; '.join(map(shape, presets().values()))};"
            f" this model has {shape(ours)}"
        )
    if preset not in choices:
        raise unknown(f"DiffRate preset for {shape(ours)}", preset, choices)
    prune, merged = choices[preset]
    return _held(geometry.num_patches, prune, merged, 1)


def _held(patches: int, prune: Sequence[int], merged: Sequence[int], class_token: int) -> Counts:
    """Counts with `class_token` class tokens in them to patches, each layer limited by what the one before leaves."""
    counts = []
    for p, m in zip(prune, merged, strict=True):
        stay_or_merge = min(p - class_token, patches)
        patches = min(m - class_token, stay_or_merge)
        counts.append((stay_or_merge, patches))
    return tuple(counts)


@functools.lru_cache(maxsize=256)
def _even(geometry: Geometry, rate: float) -> Counts:
    """The same number removed in every layer but the first, half of it dropped and half merged."""
    n, depth = geometry.num_patches, geometry.depth

    def left(slope: float) -> list[int]:
        return [max(1, round(n - slope * layer)) for layer in range(depth)]

    slopes = (n * step / 2000 for step in range(2001))
    counts = min(map(left, slopes), key=lambda c: abs(sum(c) - rate * n * depth))
    return tuple((m + (before - m) // 2, m) for before, m in zip((n, *counts), counts, strict=False))
