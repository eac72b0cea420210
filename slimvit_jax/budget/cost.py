"""What a schedule costs on the machine at hand: a few measurements, and a fit that predicts all others.

    ms(schedule) = fixed + sum over layers of a + b n_a + c n_a^2 + d n_m + what the method adds

n_a and n_m are the tokens in a layer's attention and in its MLP. The dense layers are timed on a few numbers of tokens,
all layers in one program; b and d share what grows linearly in proportion to the multiply-adds of the two halves.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from slimvit_jax.backbones.vit import VisionTransformer
from slimvit_jax.inference import timing
from slimvit_jax.plan import Geometry, Plan
from slimvit_jax.slimming import Slimming
from slimvit_jax.tokens import Tokens

#: Shares of the tokens that the layers are timed on.
SHARES = (1.0, 0.8, 0.6, 0.4, 0.2)


@dataclasses.dataclass(frozen=True)
class Clock:
    """How times are taken.

    Attributes:
      batch_size: images per batch.
      rounds: samples of each of what takes turns.
      seconds: length of a sample.
    """

    batch_size: int = 1
    rounds: int = 7
    seconds: float = 0.15


@dataclasses.dataclass(frozen=True)
class CostModel:
    """Milliseconds of one batch.

    Attributes:
      geometry: of the backbone.
      fixed: everything but the layers.
      layer: (a, b, c) of one dense layer on n tokens, prefix tokens among them: a + b n + c n^2.
      extra: by the name of a family, what its first reduction adds, and what every further one adds per share of the
        patches that it takes in.
      measured: tokens to the milliseconds of all layers, what `layer` was fitted to.
    """

    geometry: Geometry
    fixed: float
    layer: tuple[float, float, float]
    extra: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    measured: Mapping[int, float] = dataclasses.field(default_factory=dict)

    def ms(self, plan: Plan, family: str = "") -> float:
        """Of a plan, under a family's method."""
        (a, b, c), prefix, g = self.layer, self.geometry.prefix_tokens, self.geometry
        in_attention = 4 * g.dim / (4 * g.dim + 2 * g.mlp_hidden)
        total = self.fixed
        for attention, mlp in zip(plan.attention, plan.mlp, strict=True):
            n, m = attention + prefix, mlp + prefix
            total += a + b * (in_attention * n + (1 - in_attention) * m) + c * n * n
        first, later = self.extra.get(family, (0.0, 0.0))
        return total + float(np.dot(reductions(plan, g.num_patches), (first, later)))

    @property
    def dense(self) -> float:
        """Of the model without a method."""
        return self.ms(self.geometry.dense_plan)

    @property
    def residual(self) -> float:
        """The largest error of `layer` where it was measured, as a share."""
        a, b, c = self.layer
        depth = self.geometry.depth
        return max((abs(depth * (a + b * n + c * n * n) / ms - 1) for n, ms in self.measured.items()), default=0.0)

    def with_extra(self, family: str, seen: Sequence[tuple[Plan, float]]) -> CostModel:
        """With what a family's method adds, from plans of it and their measured milliseconds."""
        rows = np.asarray([reductions(plan, self.geometry.num_patches) for plan, _ in seen])
        first, later = _not_negative(rows, np.asarray([ms - self.ms(plan) for plan, ms in seen]))
        return dataclasses.replace(self, extra={**self.extra, family: (float(first), float(later))})


def reductions(plan: Plan, patches: int) -> tuple[float, float]:
    """Whether anything is reduced at all, and the patches that all later reductions take in, over N."""
    taken = [before for before, after in itertools.pairwise((patches, *plan.halves)) if after < before]
    return float(bool(taken)), sum(taken[1:]) / patches


def fit_layer(measured: Mapping[int, float], depth: int) -> tuple[float, float, float]:
    """(a, b, c) of one layer from the milliseconds of `depth` layers by their tokens; errors count as shares."""
    counts, times = np.asarray(list(measured), np.float64), np.asarray(list(measured.values()), np.float64)
    rows = np.stack([np.ones_like(counts), counts, counts**2], axis=1) * depth / times[:, None]
    scale = rows.max(axis=0)  # columns of one size
    a, b, c = _not_negative(rows / scale, np.ones(len(counts))) / scale
    return float(a), float(b), float(c)


def _not_negative(rows: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Least squares with coefficients of at least 0."""
    from scipy.optimize import nnls  # here: it takes a fifth of a second to import, and only budgets come by

    return np.asarray(nnls(rows, values)[0])


def measure(
    model: VisionTransformer, variables: Any, clock: Clock, progress: Callable[[str], None] = lambda line: None
) -> CostModel:
    """Times a model without its method, and its layers on `SHARES` of the tokens, in turns.

    Args:
      model: its method does not matter.
      variables: its variables.
      clock: of the batch whose latency counts.
      progress: called with what is done.
    """
    geometry, depth = model.geometry, model.depth
    model = model.clone(slim=Slimming(geometry=geometry))
    random = np.random.default_rng(0)
    images = jnp.asarray(random.normal(size=(clock.batch_size, *model.img_size, model.in_chans)), jnp.float32)
    whole = geometry.prefix_tokens + geometry.num_patches
    counts = sorted({max(geometry.prefix_tokens + 1, round(whole * share)) for share in SHARES}, reverse=True)
    samplers = {"dense": _sampler(lambda variables, images: model.apply(variables, images), variables, images)}
    for n in counts:
        progress(f"compiles the layers for {n} tokens")
        x = jnp.asarray(random.normal(size=(clock.batch_size, n, geometry.dim)), model.dtype)
        layers = lambda variables, x: model.apply(variables, x, method=_layers)
        samplers[str(n)] = _sampler(layers, variables, x)
    progress(f"times the layers for {', '.join(map(str, counts))} tokens")
    timed = timing.interleave(samplers, clock.rounds, clock.seconds)
    measured = {n: 1000 * timed[str(n)].median for n in counts}
    layer = fit_layer(measured, depth)
    fitted = CostModel(geometry, 0.0, layer, {}, measured)
    return dataclasses.replace(fitted, fixed=max(0.0, 1000 * timed["dense"].median - fitted.dense))


def _layers(model: Any, x: Any) -> Any:
    """All blocks on any number of tokens; the tokens count as patches of the first places."""
    places = None if model.rotary is None else jnp.asarray(model.rotary.coordinates())
    tokens = Tokens.of(x, model.geometry.prefix_tokens, places=places)
    for block in model.blocks:
        tokens = block.attend(tokens, (), False)[0]
        tokens = tokens.add(block.feed_forward(tokens, False))
    return tokens.x


def _sampler(function: Callable[..., Any], *arguments: Any) -> timing.Sampler:
    run = jax.jit(function).lower(*arguments).compile()
    return timing.sampler(lambda: jax.block_until_ready(run(*arguments)))
