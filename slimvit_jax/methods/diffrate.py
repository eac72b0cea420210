"""DiffRate (Chen et al. 2023): the last by class attention are dropped, the next merged, numbers per layer are data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from slimvit_jax.errors import SlimError
from slimvit_jax.facts import Facts
from slimvit_jax.losses import Targets
from slimvit_jax.methods.diffrate_counts import Counts, even_counts, held, preset_counts
from slimvit_jax.methods.merging import Merging
from slimvit_jax.methods.ranking import class_attention, ranking
from slimvit_jax.ops import merge, rates, select
from slimvit_jax.options import Count, Kind, Share, kind_of
from slimvit_jax.plan import Geometry, Plan
from slimvit_jax.slimming import Probe
from slimvit_jax.tokens import Aux, Tokens


def _read_preset(value: Any) -> str:
    if isinstance(value, Real) and not isinstance(value, bool):  # 2.9 of a command line or of JSON
        return str(kind_of(float).read(value))
    if not isinstance(value, str):
        raise ValueError(value)
    return value


Preset = Annotated[str, Kind("be the name of published counts, such as '2.9'", _read_preset)]
#: Log weight of a patch that is gone but still there while counts are learned; exp() of it is an exact float32 zero.
GONE = -1000.0


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

    Without class token a is the attention that a patch receives, see `Slimming.needs`.

    Deviations: other prefix tokens are protected like the class token (a distilled model crashes in the release).
    The similarity scales the size, so a negative one lowers it and the release can take the logarithm of a negative
    number: here no size falls below 1e-6. A count of the class token alone is refused (merged there, sizes become
    minus infinity in the release). A layer that removes nothing does not sort. Training does what inference does,
    without the release's sizes of at least 1; no gradient flows through the choice. Imposed scores replace a for tokens
    that are still one patch.

    *Learning the counts* (`target_flops`; the paper's sections 3.2, 3.3, DiffRate/ddp.py, engine.py). p and m of every
    layer but the first are the expectation, rounded up, of a learned distribution over N, N - g, ... patches. All
    patches are computed: in training masked as DynamicViT's, a rank that p or m cuts having the gradient of its chance
    to stay, sizes at least 1; else exactly what the counts of that moment would compute, and nothing is cheaper.
    loss: classification + 100 (share - target_flops)^2, share the multiply-adds of the layers over the dense layers'.
    The backbone is frozen (`trainable="method"`). Afterwards `found_counts` gives the counts as options. Deviations:
    the release's loss is 5 (GFLOPs - target)^2, which for DeiT-S is 103 (share - target)^2; what is masked ranks last
    whatever its attention; any model's last layer learns (the release's patch of MAE leaves it whole).

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
      target_flops: learn the counts, at this share of the dense layers' multiply-adds.
      granularity: g, the patches between two numbers that can be learned.
    """

    method = "diffrate"
    facts = Facts(
        source="Chen et al. 2023, OpenGVLab/DiffRate",
        cost="((P + n) + (p - m) m + 3 (p - m)) D per layer",
        training_free=True,
        grid="dropped and merged",
        where="inside, every layer",
    )
    untrained = ({},)
    prunes = True
    in_place_of_keep_rate = ("prune_kept_num", "merge_kept_num", "preset", "target_flops")

    prune_kept_num: tuple[Count, ...] | None = None
    merge_kept_num: tuple[Count, ...] | None = None
    preset: Preset | None = None
    keep_rate: Share | None = None
    target_flops: Share | None = None
    granularity: Count = 4

    def check_options(self) -> None:
        super().check_options()
        given = [name for name in (*self.in_place_of_keep_rate, "keep_rate") if getattr(self, name) is not None]
        if len(given) > 1 and set(given) != {"prune_kept_num", "merge_kept_num"}:
            raise SlimError(f"{' and '.join(given)} are given: counts, a preset, a keep rate or a target, one of these")

    def check_geometry(self, geometry: Geometry) -> None:
        super().check_geometry(geometry)
        self._counts(geometry)

    def at_counts(self, counts: Sequence[int]) -> dict[str, Any] | None:
        """Half of what goes is dropped, half merged."""
        if self.learns:
            return None
        others = {n: None for n in ("preset", "keep_rate") if getattr(self, n) is not None}
        whole, front = (self.bound.num_patches, *counts), self.bound.class_token
        prune = tuple(m + (n - m) // 2 + front for n, m in zip(whole, counts, strict=False))
        return {**others, "prune_kept_num": prune, "merge_kept_num": tuple(m + front for m in counts)}

    def fewest(self, layer: int, patches: int) -> int:
        return patches if self.learns else 1

    @property
    def counts(self) -> Counts:
        """(patches that stay or merge, patches that stay) of every layer; equal where nothing is merged."""
        return self._counts(self.bound)

    def _counts(self, geometry: Geometry) -> Counts:
        if self.target_flops is not None:
            return ((geometry.num_patches,) * 2,) * geometry.depth
        if self.preset is not None:
            return preset_counts(self.preset, geometry)
        lists = {"prune_kept_num": self.prune_kept_num, "merge_kept_num": self.merge_kept_num}
        given = {name: counts for name, counts in lists.items() if counts is not None}
        if not given:
            return even_counts(geometry, 0.7 if self.keep_rate is None else self.keep_rate)
        least = 1 + geometry.class_token
        for name, counts in given.items():
            if len(counts) != geometry.depth:
                raise SlimError(f"{name}={counts} has {len(counts)} entries for {geometry.depth} layers")
            if min(counts) < least:
                raise SlimError(f"{name}={counts} must not fall below {least}, the class token and one patch")
        everything = (geometry.num_patches + geometry.class_token,) * geometry.depth
        prune, merged = (everything if counts is None else counts for counts in lists.values())
        return held(geometry.num_patches, prune, merged, geometry.class_token)

    @property
    def plan(self) -> Plan:
        left = tuple(m for _, m in self.counts)
        return Plan((self.bound.num_patches, *left[:-1]), left)

    def extra_flops(self) -> dict[int, int]:
        dim, cost = self.bound.dim, {}
        if self.learns:
            n = self.bound.num_patches
            return {layer: (self.bound.prefix_tokens + n + 2 * n * n) * dim for layer in range(2, self.bound.depth + 1)}
        for layer, (n, (p, m)) in enumerate(zip(self.plan.attention, self.counts, strict=True), start=1):
            if m < n:
                cost[layer] = (self.bound.prefix_tokens + n + (p - m) * m + 3 * (p - m)) * dim
        return cost

    def needs(self, layer: int, train: bool) -> tuple[str, ...]:
        return ("class_attention",) if self.merged[layer - 1] or (self.learns and layer > 1) else ()

    def after_attention(self, tokens: Tokens, layer: int, probe: Probe, train: bool) -> Tokens:
        if not self.needs(layer, train):
            return tokens
        tokens, attention = class_attention(tokens, probe)
        if self.learns:
            return self._masked(tokens, layer, attention, train)
        stay_or_merge, stay = self.counts[layer - 1]
        order = select.top(ranking(tokens, attention), stay_or_merge)
        matching, cosine = merge.ranked_matching(tokens.x, order, stay, tokens.prefix)
        x, _ = merge.merge_weighted(matching, tokens.x, jnp.ones(tokens.x.shape[:2], jnp.float32))
        tokens = self.reduced(tokens, matching, x, merge.merge_scaled_sizes(matching, tokens.memory["size"], cosine))
        only_dropped = stay == stay_or_merge and tokens.log_weight is None  # so far: all sizes are 1
        return tokens if only_dropped else tokens.replace(log_weight=jnp.log(tokens.memory["size"]))

    # Learning the counts -----------------------------------------------------------------------------------------

    @property
    def learns(self) -> bool:
        """Whether the counts are parameters."""
        return self.target_flops is not None

    @property
    def loss_weights(self) -> Mapping[str, float]:  # type: ignore[override]  # "flops" where counts are learned
        return {"classification": 1.0, "flops": 100.0} if self.learns else {"classification": 1.0}

    @property
    def numbers(self) -> Any:
        """(K,) float32: the numbers of patches that a layer can learn to keep."""
        return rates.candidates(self.bound.num_patches, self.granularity)

    def setup(self) -> None:
        if self.learns:
            shape = (self.bound.depth - 1, len(self.numbers))
            self.prune_rates = self.param("prune_rates", nn.initializers.zeros, shape, jnp.float32)
            self.merge_rates = self.param("merge_rates", nn.initializers.zeros, shape, jnp.float32)

    def start(self, tokens: Tokens, train: bool) -> Tokens:
        tokens = super().start(tokens, train)
        if not self.learns:
            return tokens
        n = jnp.float32(self.bound.num_patches)
        held = jnp.ones(tokens.origin.shape, jnp.float32)
        tokens = tokens.replace(policy=tokens.per_token(held, 1.0)) if train else tokens
        return tokens.remember(held=held, left=n, kept_numbers=((n, n),))

    def _masked(self, tokens: Tokens, layer: int, scores: Array, train: bool) -> Tokens:
        state, prefix, numbers = tokens.memory, tokens.prefix, self.numbers
        chances = [logits[layer - 2] for logits in (self.prune_rates, self.merge_rates)]
        stay_or_merge, stay = (rates.kept_number(logits, numbers) for logits in chances)
        before, whole = state["left"], jax.lax.stop_gradient(state["held"]) > 0.5
        between = jnp.minimum(before, jax.lax.stop_gradient(stay_or_merge))
        after = jnp.minimum(between, jax.lax.stop_gradient(stay))
        ranks = rates.ranks_of(scores, whole)
        pruned, merged = (rates.survival(logits, numbers) for logits in chances)
        held = state["held"] * rates.rank_mask(ranks, pruned, before, between)
        held = held * rates.rank_mask(ranks, merged, between, after)
        source, target = (ranks >= after) & (ranks < between), ranks < after
        least = 1.0 if train else -jnp.inf  # of what is added to a size: as released, in training alone
        patches, size, host = rates.merge_in_place(tokens.patches, state["size"][:, prefix:], source, target, least)
        size = tokens.per_token(jnp.maximum(size, 1e-6), 1.0)
        host = jnp.where(target | source, prefix + host, -1)
        front = jnp.broadcast_to(jnp.arange(prefix, dtype=jnp.int32), (host.shape[0], prefix))
        owner = select.gather(jnp.concatenate([front, host], axis=1), jnp.maximum(state["owner"], 0))
        gone = jnp.where(ranks < after, 0.0, GONE)
        kept = jnp.where(ranks < after, tokens.origin, -1)  # noted here: the encoder sees as many rows as before
        tokens = (
            tokens.with_patches(patches, tokens.origin)
            .replace(kept=(*tokens.kept, kept))
            .remember(
                held=held,
                left=after,
                size=size,
                owner=jnp.where(state["owner"] < 0, -1, owner),
                kept_numbers=(*state["kept_numbers"], (stay_or_merge, stay)),
            )
        )
        if train:
            return tokens.replace(policy=tokens.per_token(held, 1.0), log_weight=jnp.log(size))
        return tokens.replace(log_weight=jnp.log(size) + tokens.per_token(gone, 0.0))

    def finish(self, tokens: Tokens, train: bool) -> Tokens:
        tokens = super().finish(tokens, train)
        if not self.learns:
            return tokens
        bound, kept = self.bound, tokens.memory["kept_numbers"]
        share = rates.layers_share(kept, bound.num_patches, bound.prefix_tokens, bound.dim, bound.mlp_hidden)
        share = jnp.broadcast_to(share, tokens.origin.shape[:1])
        return tokens.replace(taps={**tokens.taps, "flops_share": share})

    def pooling_weights(self, tokens: Tokens, train: bool) -> Array | None:
        if not self.learns:
            return super().pooling_weights(tokens, train)
        weight = tokens.memory["size"][:, tokens.prefix :] * tokens.memory["held"]
        return weight / jax.lax.stop_gradient(weight.sum(axis=1, keepdims=True))

    def loss_terms(self, logits: Array, aux: Aux, targets: Targets) -> dict[str, Array]:
        losses = super().loss_terms(logits, aux, targets)
        if self.learns:
            losses["flops"] = jnp.square(aux.taps["flops_share"] - self.target_flops)
        return losses


def found_counts(model: Any, variables: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The counts that a model with `target_flops` has learned, as options of one that has them: no parameters, static.

        options = found_counts(model, variables)
        create_model(name, method="diffrate", **options)           with the same weights, but for params["slim"]

    Args:
      model: from create_model, with target_flops.
      variables: its variables.

    Returns:
      {"prune_kept_num", "merge_kept_num"}, one number per layer, the class token counted.

    Raises:
      SlimError: for a model that learns no counts.
    """
    slim = model.slim
    if not isinstance(slim, DiffRate) or not slim.learns:
        raise SlimError(
            f"method {slim.method!r} learns no counts; make the model with method='diffrate', target_flops="
        )
    numbers, own = slim.numbers, variables["params"]["slim"]
    everything = slim.bound.num_patches + slim.bound.class_token

    def read(logits: Array) -> tuple[int, ...]:
        kept = jax.vmap(lambda row: rates.kept_number(row, numbers))(jnp.asarray(logits))
        return (everything, *(int(k) + slim.bound.class_token for k in kept))

    return {"prune_kept_num": read(own["prune_rates"]), "merge_kept_num": read(own["merge_rates"])}
