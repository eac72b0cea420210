"""Cropr (Bergner et al. 2024, "Token Cropr: Faster ViTs for Quite a Few Tasks"): learned queries score patches."""

from __future__ import annotations

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from slimvit_jax import losses as loss_functions
from slimvit_jax.errors import SlimError
from slimvit_jax.facts import Facts
from slimvit_jax.layers import LayerNorm, Linear, Mlp
from slimvit_jax.losses import Targets
from slimvit_jax.methods.dropping import Dropping
from slimvit_jax.methods.ranking import noted, ranking
from slimvit_jax.ops import attention as attention_ops
from slimvit_jax.options import Count, Natural
from slimvit_jax.plan import Geometry, Plan
from slimvit_jax.tokens import Aux, Tokens


class Projection(nn.Module):
    """The (D, D) matrix of a linear map without bias, as it is."""

    dim: int

    @nn.compact
    def __call__(self) -> Array:
        return self.param("kernel", nn.initializers.truncated_normal(0.02), (self.dim, self.dim))


class CrossAttention(nn.Module):
    """Queries that look at the tokens: their logits score, and in training what they read is classified.

    Attributes:
      dim: D.
      num_queries, heads: of the cross-attention.
      pre_attn_norm, q_proj, k_proj, v_proj: what there is in front of the products.
    """

    dim: int
    num_queries: int
    heads: int
    pre_attn_norm: bool
    q_proj: bool
    k_proj: bool
    v_proj: bool

    def setup(self) -> None:
        init = nn.initializers.truncated_normal(self.dim**-0.5)
        self.queries = self.param("queries", init, (1, self.num_queries, self.dim))
        if self.pre_attn_norm:
            self.attn_norm = LayerNorm(1e-6)
        for name in ("q", "k", "v"):
            if getattr(self, f"{name}_proj"):
                setattr(self, name, Projection(self.dim))
        if self.heads > 1:
            self.proj = Linear(self.dim)
        self.mlp_norm, self.mlp = LayerNorm(1e-6), Mlp(4 * self.dim, self.dim)

    def scores(self, x: Array) -> Array:
        """(B, n) float32: the sum over queries and heads of q . k, for (B, n, D) tokens.

        Sums first: one dot product per token, whatever the projections.
        """
        query = self._queries().sum(axis=0)
        if self.k_proj:
            query = self.k() @ query
        return jnp.einsum("bnd,d->bn", self._normed(x), query)

    def read(self, x: Array) -> Array:
        """(B, Q, D) float32: softmax attention of the queries over all tokens, then the MLP; for training."""
        y = self._normed(x)
        key, value = (y @ getattr(self, name)() if getattr(self, f"{name}_proj") else y for name in ("k", "v"))
        query = jnp.broadcast_to(self._queries(), (x.shape[0], self.num_queries, self.dim))
        split = lambda a: a.reshape(*a.shape[:2], self.heads, self.dim // self.heads)
        out = attention_ops.attention(split(query), split(key), split(value), backend="xla")
        out = out.reshape(*out.shape[:2], self.dim)
        out = self.proj(out) if self.heads > 1 else out
        return out + self.mlp(self.mlp_norm(out), False)

    def _queries(self) -> Array:
        return self.queries[0] @ self.q() if self.q_proj else self.queries[0]

    def _normed(self, x: Array) -> Array:
        x = x.astype(jnp.float32)
        return self.attn_norm(x) if self.pre_attn_norm else x


class AuxiliaryHead(nn.Module):
    """Classifies what the queries of one module have read; training only."""

    num_classes: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return Linear(self.num_classes, name="head")(LayerNorm(1e-5, name="norm")(x))


class CroprModule(nn.Module):
    """One module: scores for all, predictions in training."""

    cross_attn: CrossAttention
    num_classes: int

    def setup(self) -> None:
        if self.num_classes:
            self.head = AuxiliaryHead(self.num_classes)

    def scores(self, x: Array) -> Array:
        """(B, n) float32 of (B, n, D)."""
        return self.cross_attn.scores(x)

    def predictions(self, x: Array) -> Array:
        """(B, Q, C) float32 logits of (B, M, D) tokens."""
        return self.head(self.cross_attn.read(x))


class Cropr(Dropping, kw_only=True):
    """After block upon block the patches that learned queries care least for leave; before the last block all rejoin.

        s_i = sum over queries (and heads) of q . k_i        dot product with the block's output, neither scaled nor
                                                             softmaxed; prefix tokens always stay
        dropped after a block: the `pruning_rate` patches of lowest s, one more after the first block
        training: what the queries read, softmax(q k^T / sqrt(d)) v, passes an MLP and a linear head, which learn to
                  classify; no gradient flows into the tokens. Training drops as inference does.

    "At layer t" means after layer t: there is a module after every layer but the last, with last-layer fusion (`llf`)
    after every one but the last two. Official: cls/cropr.py, cls/vision_transformer.py of benbergner/cropr. The heads,
    and what they alone need (MLP, v, proj), are training's: weights of a release without them load with
    `inference=True`.

    Deviations: a rate that leaves no patch is refused and a model too shallow for a module is left dense (the release
    crashes), and rate 0 drops nothing; the loss of the
    heads is the mean over modules and queries, with weight 1; stochastic depth of the last block is the model's, 0 in
    the release. Its global_pool="avg" is our pool_include_prefix=True besides. What rejoins does so in raster order,
    not in that of the drops; no number depends on it. Cost per module: one dot product per patch, n D; D^2 once for
    each projection.

    aux.taps: in training "auxiliary_logits", (B, Q, C) per module. aux.scores is the first module's.

    Attributes:
      pruning_rate: patches dropped after each block.
      llf: last-layer fusion, rejoin = depth. With `rejoin` the modules end two layers before that instead.
      num_queries: Q.
      query_heads: of the cross-attention; the scores do not depend on them.
      pre_attn_norm: a layer norm in front of it.
      q_proj, k_proj, v_proj: linear maps of queries, keys and values.
      squeeze, squeeze_temperature, rejoin: see `Dropping`.
    """

    method = "cropr"
    facts = Facts(
        source="Bergner et al. 2024, benbergner/cropr",
        cost="n D per layer, D² per projection",
        learns="queries, and heads for training",
        training="as at inference, with auxiliary heads",
        where="after, every layer",
        grid="dropped; all rejoin with llf",
    )
    loss_weights: ClassVar[dict[str, float]] = {"classification": 1.0, "auxiliary": 1.0}
    training_only = (r"slim/cropr_\d+/head/.*", r"slim/cropr_\d+/cross_attn/(v|proj|mlp_norm|mlp)/.*")

    pruning_rate: Natural = 8
    llf: bool = True
    num_queries: Count = 1
    query_heads: Count = 1
    pre_attn_norm: bool = False
    q_proj: bool = False
    k_proj: bool = False
    v_proj: bool = False

    def check_geometry(self, geometry: Geometry) -> None:
        super().check_geometry(geometry)
        if geometry.dim % self.query_heads:
            raise SlimError(f"query_heads={self.query_heads} does not divide the width {geometry.dim} of the model")
        if self.rejoin is not None and not self.modules:
            raise SlimError(f"rejoin={self.rejoin} leaves no layer for method 'cropr' to drop patches after")
        most = (geometry.num_patches - 2) // max(1, self.modules)
        if self.modules and self.pruning_rate > most:
            raise SlimError(
                f"pruning_rate={self.pruning_rate} drops {self.pruning_rate * self.modules + 1} patches in"
                f" {self.modules} modules; of {geometry.num_patches} one must be left, so it must lie in 0..{most}"
            )

    @property
    def rejoins_at(self) -> int | None:
        return max(2, self.bound.depth) if self.rejoin is None and self.llf else self.rejoin

    @property
    def modules(self) -> int:
        """How many modules there are, after layers 1, 2, ..."""
        return max(0, self.bound.depth - 1 if self.rejoins_at is None else self.rejoins_at - 2)

    @property
    def dropping_plan(self) -> Plan:
        n, rate, layers = self.bound.num_patches, self.pruning_rate, range(1, self.modules + 1)
        counts = [n - rate * layer - (rate > 0) for layer in layers]
        return Plan.drop(self.bound, layers, counts, "after")

    def extra_flops(self) -> dict[int, int]:
        dim, projections = self.bound.dim, self.num_queries * self.q_proj + self.k_proj
        layers = range(1, self.modules + 1) if self.pruning_rate else ()
        own = {layer: self.plan.mlp[layer - 1] * dim + projections * dim**2 for layer in layers}
        return self.with_squeeze_flops(own)

    def setup(self) -> None:
        bound = self.bound
        sizes = (bound.dim, self.num_queries, self.query_heads)
        parts = (self.pre_attn_norm, self.q_proj, self.k_proj, self.v_proj)
        self.cropr = [
            CroprModule(CrossAttention(*sizes, *parts, parent=None), bound.num_classes) for _ in range(self.modules)
        ]

    def after_block(self, tokens: Tokens, layer: int, train: bool) -> Tokens:
        if layer > self.modules:
            return tokens
        module, x = self.cropr[layer - 1], jax.lax.stop_gradient(tokens.x)
        if train and self.bound.num_classes:
            tokens = tokens.tap("auxiliary_logits", module.predictions(x))
        left = self.dropping_plan.attention[layer]
        if left == tokens.n and not self.is_initializing():
            return tokens
        scores = module.scores(x[:, tokens.prefix :])
        tokens = noted(tokens, scores)
        return tokens if left == tokens.n else self.drop(tokens, left, ranking(tokens, scores))

    def loss_terms(self, logits: Array, aux: Aux, targets: Targets) -> dict[str, Array]:
        terms = super().loss_terms(logits, aux, targets)
        predictions = aux.taps.get("auxiliary_logits", ())
        labels = targets.labels[:, None]
        each = [loss_functions.cross_entropy(predicted, labels) for predicted in predictions]
        return terms | {"auxiliary": jnp.stack(each).mean(axis=0)} if each else terms
