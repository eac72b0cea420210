"""`fit_budget`: from a pretrained model, a target and some images to a method and its counts."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np

from slimvit_jax.budget import schedules
from slimvit_jax.budget.bench import Bench, Row, Say
from slimvit_jax.budget.cost import Clock, CostModel, measure
from slimvit_jax.budget.given import check_labels, check_target, checked_images, families_of
from slimvit_jax.budget.layerwise import Family, Layerwise
from slimvit_jax.budget.race import Race
from slimvit_jax.budget.schedules import Counts, Shape
from slimvit_jax.errors import SlimError
from slimvit_jax.keywords import checked
from slimvit_jax.methods.diffrate_counts import presets
from slimvit_jax.options import Count, Natural, Positive, Range

#: Speedups that the picture of the front shows beside the one asked for.
FRONT = (1.2, 1.4, 1.7, 2.0)
#: Of the schedules to begin with, the one that is not made by hand.
LIVES = "lives of the data"
#: Images that all methods are compared on; the best few are compared on all images.
SCREENED = 64


@dataclasses.dataclass(frozen=True)
class Budget:
    """What `tune` found.

    Attributes:
      options: that `create_model` takes, the method's name among them.
      counts: patches left of every layer.
      target_ms, dense_ms, ms: milliseconds of one batch: asked for, of the dense model, and measured with `options`;
        the last two timed in turns.
      measure: what disagreement is: "KL" of the softmaxed logits, or "1 - cosine" of the features.
      found: the schedule on all images; where none that was found is better than those made by hand, the best of these.
      by_hand: schedules made by hand of the same predicted cost, on all images, the best first.
      front: these and the found shape at other speeds, on the images of the search.
      cost: the cost model.
      evaluations, programs, seconds: of the search.
    """

    options: dict[str, Any]
    counts: Counts
    target_ms: float
    dense_ms: float
    ms: float
    batch_size: int
    measure: str
    images: int
    found: Row
    by_hand: tuple[Row, ...]
    front: tuple[Row, ...]
    cost: CostModel
    evaluations: int
    programs: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        plain = dataclasses.asdict(self)
        plain["cost"]["residual"] = self.cost.residual
        return plain


def fit_budget(
    model: Any,
    variables: Any,
    images: Any = None,
    *,
    target_ms: float | None = None,
    speedup: float | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Options under which a model meets a latency and disagrees least with the dense model; nothing is trained.

        options = slim.fit_budget(model, variables, images, speedup=1.5)
        faster = slim.create_model(name, **options)                     with the same variables

    Args:
      model: of `create_model`, a plain ViT. Without a method, those that need no training are tried; a model with a
        method keeps it, and gets other counts.
      variables: its variables.
      images: (n, H, W, C) float32, a few hundred, prepared for the model (`transform_for`), without labels. None:
        noise, which tells little about photographs.
      target_ms: milliseconds that one batch may take.
      speedup: how many times faster than the dense model, in place of target_ms.
      **options: of `tune`.

    Returns:
      Keywords of `create_model`: "method" and its options.

    Raises:
      SlimError: of `tune`.
    """
    return tune(model, variables, images, target_ms=target_ms, speedup=speedup, **options).options


@checked
def tune(
    model: Any,
    variables: Any,
    images: Any = None,
    *,
    target_ms: float | None = None,
    speedup: float | None = None,
    methods: str | tuple[str, ...] = (),
    batch_size: Count = 1,
    labels: Any = None,
    search_images: Count = 64,
    finalists: Count = 2,
    evaluations: Natural = 60,
    front: tuple[Annotated[float, Range(above=1)], ...] = FRONT,
    rounds: Count = 7,
    seconds: Positive = 0.15,
    progress: Say | None = None,
) -> Budget:
    """`fit_budget` with everything that was seen on the way.

    Args:
      model, variables, images, target_ms, speedup: of `fit_budget`.
      methods: names to try in place of the usual ones; "all": all that need no training. For a model without a method.
      batch_size: images per batch whose latency counts.
      labels: (n,) class indices, for the accuracies of the table; the search does not see them.
      search_images: how many of the images the search looks at, those that say most (`race.drawn`); what it finds is
        compared with the schedules made by hand on all images, and the best of all is taken.
      finalists: methods whose counts are searched, the best at schedules made by hand.
      evaluations: schedules looked at per finalist.
      front: further speedups to look at, for the picture.
      rounds, seconds: samples of every time, and how long each is.
      progress: called with a line for every step.

    Raises:
      SlimError: no target or two; one that cannot be met, or that the dense model meets; unknown methods, or a
        method that cannot be given counts; images that do not fit.
    """
    began, say = time.perf_counter(), progress or (lambda line: None)
    target = check_target(target_ms, speedup)
    clock = Clock(batch_size, rounds, seconds)
    families = families_of(model, methods)
    images = checked_images(model, images)
    if labels is not None:
        check_labels(model, labels, len(images))
    few = np.linspace(0, len(images) - 1, min(SCREENED, len(images))).round().astype(int)
    small = Layerwise(model, variables, images[few])
    cost = measure(model, variables, clock, say)
    dense_ms = cost.dense
    limit = dense_ms / speedup if speedup is not None else target
    if limit >= dense_ms:
        raise SlimError(f"target of {limit:.4g} ms: the dense model takes {dense_ms:.4g} ms; nothing is to be dropped")
    say(f"dense: {dense_ms:.2f} ms a batch of {batch_size}; target {limit:.2f} ms, {dense_ms / limit:.2f} x as fast")
    bench = Bench(model, variables, small, cost, families)
    shapes = shapes_of(model, variables, images[few])

    say("compares methods at schedules made by hand")
    starts = ((name, bench.best(name, shapes, limit)) for name in families)
    first = {name: start[1] for name, start in starts if start is not None}
    if not first:
        fastest = min(bench.cost.ms(family.at(_least(family)).plan) for family in families.values())
        raise SlimError(f"target of {limit:.4g} ms: no method here is faster than {fastest:.4g} ms")
    ranked = sorted(first, key=lambda name: first[name])
    for name in ranked:
        say(f"  {name}: {first[name]:.4g}")
    chosen = ranked[:finalists]
    say(f"times {len(chosen)} methods")
    bench.learn_extra(chosen, shapes, limit, clock, say)
    say(f"looks at all {len(images)} images")
    final = bench.on(Layerwise(model, variables, images, programs=small.programs), labels)
    by_hand = _by_hand(bench, final, chosen, shapes, limit)
    if not by_hand:
        raise SlimError(f"target of {limit:.4g} ms: no method here is that fast")
    best_by_hand = {row.family: row.counts for row in reversed(by_hand)}
    race, results = Race.of(final, images, best_by_hand, search_images), list(by_hand)
    for name, start in best_by_hand.items():
        counts = race.search(name, start, limit, evaluations, say)
        results += [final.row(name, "found", counts)] if counts != start else []
    best = min(results, key=lambda row: row.disagreement)
    if best.shape != "found":
        say(f"nothing found is better than {best.shape} on all images")
    name = best.family
    counts, ms = bench.meet(name, best.counts, limit, clock, say)
    found = final.row(name, "found", counts)
    rows = [row for row in by_hand if row.shape != LIVES]
    say("looks at other speeds")
    points = _front(bench, name, counts, rows, shapes, [dense_ms / s for s in front] + [limit])
    seconds = time.perf_counter() - began
    kind = "KL" if model.num_classes else "1 - cosine"
    say(f"found in {seconds:.0f} s: {name}, {ms:.2f} ms, {kind} {found.disagreement:.4g}")
    return Budget(
        families[name].options(counts),
        counts,
        limit,
        dense_ms,
        ms,
        batch_size,
        kind,
        len(images),
        found,
        tuple(rows),
        tuple(points),
        bench.cost,
        bench.evaluations + final.evaluations + race.parts[0].evaluations,
        small.programs.compiled,
        seconds,
    )


def _by_hand(
    bench: Bench, final: Bench, names: Sequence[str], shapes: Mapping[str, list[Shape]], limit: float
) -> list[Row]:
    """Rows on all images, the best first: of each method the schedules to begin with."""
    made = {(name, shape): bench.fitted(name, own, limit, step=1) for name in names for shape, own in shapes.items()}
    rows = [final.row(name, shape, counts) for (name, shape), counts in made.items() if counts is not None]
    return sorted(rows, key=lambda row: row.disagreement)


def _least(family: Family) -> Counts:
    """The fewest patches that a family can leave."""
    geometry = family.method.bound
    return schedules.allowed((1,) * geometry.depth, geometry.num_patches, family.method.fewest)


def _published(geometry: Any) -> dict[str, list[float]]:
    """The shares of the patches that DiffRate's published counts leave, of models of this depth and best this width."""
    same = [entry for entry in presets().values() if entry["depth"] == geometry.depth]
    same = [entry for entry in same if entry["dim"] == geometry.dim] or same
    return {
        f"{number} {name}": [(kept - 1) / entry["patches"] for kept in counts[1]]
        for number, entry in enumerate(same)
        for name, counts in entry["counts"].items()
    }


def shapes_of(model: Any, variables: Any, images: np.ndarray) -> dict[str, list[Shape]]:
    """Schedules to begin with, by name: those made by hand, and what the lives of the data say."""
    geometry = model.geometry
    shapes = schedules.by_hand(geometry.num_patches, geometry.depth, _published(geometry))
    if not model.slim.predicts_lives:
        return shapes
    run = jax.jit(lambda variables, images: model.apply(variables, images, return_aux=True)[1].scores)
    lives = np.concatenate([run(variables, jnp.asarray(images[i : i + 16])) for i in range(0, len(images), 16)])
    return shapes | {LIVES: [schedules.from_lives(lives.tolist(), geometry.depth)]}


def _front(
    bench: Bench, name: str, counts: Counts, rows: Sequence[Row], shapes: Mapping[str, list[Shape]],
    limits: Sequence[float],
) -> list[Row]:  # fmt: skip
    """The found shape and every schedule made by hand, under the method that it is best with, at several costs."""
    best = {row.shape: row.family for row in reversed(rows)}
    found = {"found": (name, [schedules.scaled(counts, bench.patches)])}
    curves = found | {shape: (family, shapes[shape]) for shape, family in best.items()}
    points = []
    for shape, (family, own) in curves.items():
        for limit in sorted(limits):
            fitted = counts if (shape, limit) == ("found", limits[-1]) else bench.fitted(family, own, limit)
            if fitted is not None:
                points.append(bench.row(family, shape, fitted))
    return points
