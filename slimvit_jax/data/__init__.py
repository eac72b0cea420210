"""Data: sources, decoding, augmentation, and the pipelines that feed training and evaluation. See pipeline.py."""

from slimvit_jax.data.augment import Augment
from slimvit_jax.data.mixup import MixupConfig, mixup_cutmix
from slimvit_jax.data.pipeline import EvalPass, TrainIterator, eval_batches, train_iterator
from slimvit_jax.data.prefetch import DeviceIterator, prefetch_to_device
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
