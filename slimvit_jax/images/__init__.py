"""From an image file to what a model takes: decoding, and the one preparation of all programs."""

from slimvit_jax.images.decode import BadImage, LargeImage
from slimvit_jax.images.preprocess import Preprocess

__all__ = ["BadImage", "LargeImage", "Preprocess"]
