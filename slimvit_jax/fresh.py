"""Method parameters that nobody has trained: what makes them notes them, what predicts with them says so, once.

An untrained predictor is worse than a random choice, and nothing shows it. Arrays are known by identity: training
gives others, and under `jax.jit` there is nothing to know; `Inference` looks in front of it.
"""

from __future__ import annotations

import logging
import re
import weakref
from collections.abc import Mapping
from typing import Any

import jax

logger = logging.getLogger(__name__)
_FRESH: weakref.WeakValueDictionary[int, jax.Array] = weakref.WeakValueDictionary()


def note(tree: Any) -> None:
    """These arrays are as initialised."""
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer):
            _FRESH[id(leaf)] = leaf


def untrained(params: Mapping[str, Any], training_only: tuple[str, ...] = ()) -> dict[str, list[jax.Array]]:
    """Of a method's parameters, those that have fresh arrays and that inference reads, by their module's name."""
    found = {name: [leaf for leaf in jax.tree.leaves(tree) if id(leaf) in _FRESH] for name, tree in params.items()}
    unread = lambda name: any(re.match(pattern, f"slim/{name}/") for pattern in training_only)
    return {name: leaves for name, leaves in found.items() if leaves and not unread(name)}


def say(method: str, found: Mapping[str, list[jax.Array]]) -> None:
    """One warning about what `untrained` found; not again for the same arrays."""
    told = {name for name, leaves in found.items() if any(id(leaf) in _FRESH for leaf in leaves)}
    for leaf in jax.tree.leaves(dict(found)):
        _FRESH.pop(id(leaf), None)
    if told:
        logger.warning("method %r predicts with %s as initialised, never trained", method, ", ".join(sorted(told)))
