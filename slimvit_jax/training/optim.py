"""From a stage's config to an optimiser over exactly the parameters that learn."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import optax
from flax import traverse_util

from slimvit_jax.backbones.base import Backbone
from slimvit_jax.errors import SlimError, unknown
from slimvit_jax.training.checks import TRAINABLE

Params = Mapping[str, Any]
Schedule = Callable[[Any], Any]


def flat(tree: Params) -> dict[str, Any]:
    """{"blocks_0/attn/qkv/kernel": array, ...}."""
    return traverse_util.flatten_dict(tree, sep="/") if tree else {}


def nested(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flat`."""
    return traverse_util.unflatten_dict(dict(tree), sep="/")


def is_method(path: str) -> bool:
    """Everything under "slim" is the method's; the rest is the backbone's."""
    return path.startswith("slim/")


def select(params: Params, trainable: str | Iterable[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits parameters into those that learn and those that stay as they are.

    Args:
      params: the whole tree.
      trainable: "all", "backbone", "method", "head" (the classifiers alone, those that
        only training has too), or regular expressions of which one must
        match a whole path.

    Returns:
      (learning, frozen), two trees without common leaves.

    Raises:
      SlimError: for another word, an expression that matches nothing, or where nothing would learn.
    """
    leaves = flat(params)
    if isinstance(trainable, str):
        if trainable not in TRAINABLE:
            raise unknown("value of trainable", trainable, TRAINABLE)
        rules: dict[str, Callable[[str], bool]] = {
            "all": lambda path: True,
            "method": is_method,
            "backbone": lambda path: not is_method(path),
            "head": lambda path: re.match(r"(slim/)?(aux_)?head(_\w+)?/", path) is not None,
        }
        rule = rules[trainable]
        chosen = {path for path in leaves if rule(path)}
    else:
        chosen = set()
        for pattern in trainable:
            found = {path for path in leaves if re.fullmatch(pattern, path)}
            if not found:
                raise SlimError(f"trainable={pattern!r} matches no parameter; the paths are like {_examples(leaves)}")
            chosen |= found
    if not chosen:
        raise SlimError(f"trainable={trainable!r}: the model has no such parameter, so the stage would train nothing")
    learning = {path: leaf for path, leaf in leaves.items() if path in chosen}
    frozen = {path: leaf for path, leaf in leaves.items() if path not in chosen}
    return nested(learning), nested(frozen)


def merge(first: Params, second: Params) -> dict[str, Any]:
    """The union of two trees without common leaves; undoes `select`."""
    return nested({**flat(first), **flat(second)})


def _examples(leaves: Iterable[str]) -> str:
    names = sorted(leaves)
    return ", ".join(names[:: max(1, len(names) // 4)][:4])


def schedule(stage: Any, steps: int, steps_per_epoch: int) -> Schedule:
    """The backbone's learning rate by step: linear warm-up, then a cosine or a constant."""
    peak = stage.lr.backbone or 1.0  # 0: only the method learns, and its rate is what `multipliers` makes of 1
    warmup = min(round(stage.warmup_epochs * steps_per_epoch), max(steps - 1, 0))
    if stage.lr_schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, max(steps - warmup, 1), stage.final_lr)
    else:
        after = optax.constant_schedule(peak)
    if warmup == 0:
        return after
    # starts at peak / warmup, not at 0: the first step counts
    return optax.join_schedules([optax.linear_schedule(peak / warmup, peak, warmup - 1), after], [warmup])


def multipliers(params: Params, stage: Any, model: Backbone) -> dict[str, Any]:
    """Per parameter, its learning rate relative to the schedule: part, expression and layer taken together.

    Of the expressions the first that matches counts: the config's, then those of the method (`parameter_rates`).
    """
    peak, slim, groups = stage.lr.backbone or 1.0, model.slim, model.layer_groups
    method = stage.lr.method / peak if stage.lr.method else slim.learning_rate_scale
    backbone = 1.0 if stage.lr.backbone else 0.0

    def factor(path: str) -> float:
        if is_method(path):
            value = method
        else:
            value = backbone * stage.layer_decay ** (len(groups) - group_of(path, groups))
        for pattern, scale in (*stage.lr_scale, *slim.parameter_rates.items()):
            if re.fullmatch(pattern, path):
                return value * scale
        return value

    paths = flat(params)
    for pattern, _ in stage.lr_scale:
        if not any(re.fullmatch(pattern, path) for path in paths):
            raise SlimError(f"lr_scale {pattern!r} matches no parameter that learns; they are like {_examples(paths)}")
    return nested({path: factor(path) for path in paths})


def group_of(path: str, groups: Sequence[str]) -> int:
    """The place of a parameter among the layers: len(groups) for what comes after them all."""
    return next((i for i, group in enumerate(groups) if re.fullmatch(group, path)), len(groups))


def decay_mask(params: Params, no_decay: Iterable[str]) -> dict[str, Any]:
    """True where weight decay applies: arrays of two axes or more that no expression of `no_decay` matches."""
    patterns = tuple(no_decay)
    decays = lambda path, leaf: leaf.ndim > 1 and not any(re.fullmatch(p, path) for p in patterns)
    return nested({path: decays(path, leaf) for path, leaf in flat(params).items()})


def make_optimizer(
    params: Params,
    stage: Any,
    rate: Schedule,
    model: Backbone,
) -> optax.GradientTransformation:
    """AdamW with clipping, a weight-decay mask and one learning rate per parameter, for `params` alone.

    Args:
      params: the learning parameters (arrays or shapes).
      stage: the stage's config.
      rate: of `schedule`.
      model: whose facts say what a layer is, what does not decay, and how fast the method learns.
    """
    factors = multipliers(params, stage, model)
    no_decay = model.no_weight_decay if stage.no_decay is None else stage.no_decay
    scale = optax.stateless(lambda updates, _: jax.tree.map(lambda u, f: u * f, updates, factors))
    parts = [optax.clip_by_global_norm(stage.clip_norm)] if stage.clip_norm else []
    parts.append(optax.scale_by_adam(stage.b1, stage.b2, stage.eps))
    if stage.weight_decay:
        parts.append(optax.add_decayed_weights(stage.weight_decay, decay_mask(params, no_decay)))
    return optax.chain(*parts, scale, optax.scale_by_learning_rate(rate))
