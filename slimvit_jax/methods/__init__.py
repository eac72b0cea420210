"""The slimming methods, by name. A new method is one file here and one line in `METHODS`."""

from __future__ import annotations

from slimvit_jax.methods.life_regression import LifeRegression
from slimvit_jax.slimming import Slimming

METHODS: dict[str, type[Slimming]] = {
    cls.method: cls
    for cls in (
        LifeRegression,
    )
}

__all__ = ["METHODS", "LifeRegression", "Slimming"]
