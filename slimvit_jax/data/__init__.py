"""Data: sources, decoding, augmentation, and the pipelines that feed training and evaluation. See pipeline.py."""

from typing import Any

from slimvit_jax.data.augment import Augment
from slimvit_jax.data.pipeline import EvalPass, TrainIterator, eval_batches, train_iterator
from slimvit_jax.data.source import Source, limited, pixels_of, samples
from slimvit_jax.data.sources import open_source, option_kinds
from slimvit_jax.images.preprocess import Preprocess

__all__ = [
    "Augment",
    "DeviceIterator",
    "EvalPass",
    "MixupConfig",
    "Preprocess",
    "Source",
    "TrainIterator",
    "eval_batches",
    "limited",
    "mixup_cutmix",
    "open_source",
    "option_kinds",
    "pixels_of",
    "prefetch_to_device",
    "samples",
    "train_iterator",
]

_NEEDS_JAX = {
    "MixupConfig": "slimvit_jax.data.mixup",
    "mixup_cutmix": "slimvit_jax.data.mixup",
    "DeviceIterator": "slimvit_jax.data.prefetch",
    "prefetch_to_device": "slimvit_jax.data.prefetch",
}


def __getattr__(name: str) -> Any:
    """Imports what needs jax on first use: worker processes start faster without it."""
    import importlib

    if name in _NEEDS_JAX:
        return getattr(importlib.import_module(_NEEDS_JAX[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
