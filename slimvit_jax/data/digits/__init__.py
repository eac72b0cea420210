"""The embedded data set: scikit-learn's handwritten digits as a tfds builder (8x8 grey, 10 classes, 1437 + 360)."""

from slimvit_jax.data.digits.digits import Digits8x8, prepare, stratified_split

__all__ = ["Digits8x8", "prepare", "stratified_split"]
