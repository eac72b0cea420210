"""RandAugment (Cubuk et al., 2019, arXiv:1909.13719) and colour jitter on PIL images.

The operations, their ranges and the description "rand-m9-mstd0.5-inc1" are those timm made common: m magnitude of 10,
n number of operations (default 2), mstd the normal spread of the magnitude, inc1 the set in which every operation
grows stronger with the magnitude, p the probability of each operation (default 0.5). No library that is kept up and
free of torch, TensorFlow and OpenCV has it, so it is written here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from slimvit_jax.errors import SlimError

FULL = 10.0  # the magnitude at which an operation is at its strongest
Fill = tuple[int, ...]
Operation = Callable[
    [Image.Image, float, float, Fill, bool], Image.Image
]  # picture, strength 0..1, sign, fill, increasing


def _affine(picture: Image.Image, matrix: tuple[float, ...], fill: Fill) -> Image.Image:
    colour = fill if picture.mode == "RGB" else fill[0]
    return picture.transform(picture.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=colour)


def _rotate(p: Image.Image, strength: float, sign: float, fill: Fill, _: bool) -> Image.Image:
    colour = fill if p.mode == "RGB" else fill[0]
    return p.rotate(sign * 30 * strength, Image.Resampling.BILINEAR, fillcolor=colour)


# Plain numpy for the next three, and for "invert": Pillow's own go through Image.point, which rounds a table of 768
# Python numbers each time.
def _posterize(p: Image.Image, strength: float, _: float, __: Fill, increasing: bool) -> Image.Image:
    bits = max(1, 4 - int(4 * strength) if increasing else int(4 * strength))  # 0 would be a black image
    return Image.fromarray(np.asarray(p) & np.uint8(256 - (1 << (8 - bits))))


def _solarize(p: Image.Image, strength: float, _: float, __: Fill, increasing: bool) -> Image.Image:
    pixels, threshold = np.asarray(p), 256 - int(256 * strength) if increasing else int(256 * strength)
    return Image.fromarray(np.where(pixels < threshold, pixels, ~pixels))


def _solarize_add(p: Image.Image, strength: float, _: float, __: Fill, ___: bool) -> Image.Image:
    pixels, add = np.asarray(p), np.uint8(110 * strength)
    return Image.fromarray(np.where(pixels < 128, pixels + add, pixels))  # at most 127 + 110: no overflow


def _enhance(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> Operation:
    """Colour, contrast, brightness or sharpness: by 1 +- 0.9 when increasing, else 0.1..1.9 with the magnitude."""

    def operation(p: Image.Image, strength: float, sign: float, _: Fill, increasing: bool) -> Image.Image:
        return kind(p).enhance(max(0.1, 1 + sign * 0.9 * strength) if increasing else 0.1 + 1.8 * strength)

    return operation


OPERATIONS: dict[str, Operation] = {
    "auto_contrast": lambda p, *_: ImageOps.autocontrast(p),
    "equalize": lambda p, *_: ImageOps.equalize(p),
    "invert": lambda p, *_: Image.fromarray(~np.asarray(p)),
    "rotate": _rotate,
    "posterize": _posterize,
    "solarize": _solarize,
    "solarize_add": _solarize_add,
    "color": _enhance(ImageEnhance.Color),
    "contrast": _enhance(ImageEnhance.Contrast),
    "brightness": _enhance(ImageEnhance.Brightness),
    "sharpness": _enhance(ImageEnhance.Sharpness),
    "shear_x": lambda p, s, sign, fill, _: _affine(p, (1, sign * 0.3 * s, 0, 0, 1, 0), fill),
    "shear_y": lambda p, s, sign, fill, _: _affine(p, (1, 0, 0, sign * 0.3 * s, 1, 0), fill),
    "translate_x": lambda p, s, sign, fill, _: _affine(p, (1, 0, sign * 0.45 * s * p.width, 0, 1, 0), fill),
    "translate_y": lambda p, s, sign, fill, _: _affine(p, (1, 0, 0, 0, 1, sign * 0.45 * s * p.height), fill),
}


@dataclass(frozen=True)
class RandAugment:
    """`layers` operations drawn with replacement, each applied with `probability` at about `magnitude` of 10."""

    magnitude: float = FULL
    spread: float = 0.0
    layers: int = 2
    probability: float = 0.5
    increasing: bool = False
    fill: Fill = (128, 128, 128)

    @classmethod
    def parse(cls, text: str, fill: Fill = (128, 128, 128)) -> RandAugment:
        """Reads "rand-m9-n2-mstd0.5-inc1-p0.5"; everything after "rand" is optional, in any order."""
        head, *parts = text.split("-")
        values: dict[str, float] = {}
        for part in parts:
            key = part.rstrip("0123456789.")
            try:
                values[key] = float(part[len(key) :])
            except ValueError:
                values["?"] = 0
        allowed = {"m", "n", "mstd", "inc", "p"}
        if head != "rand" or set(values) - allowed:
            raise SlimError(f"cannot read RandAugment description {text!r}; the form is rand-m9-n2-mstd0.5-inc1-p0.5")
        policy = cls(
            values.get("m", FULL),
            values.get("mstd", 0.0),
            int(values.get("n", 2)),
            values.get("p", 0.5),
            bool(values.get("inc", 0)),
            fill,
        )
        if not (0 <= policy.magnitude <= FULL and policy.layers >= 0 and 0 <= policy.probability <= 1):
            raise SlimError(f"RandAugment {text!r} is out of range: m 0..10, n at least 0, p 0..1")
        return policy

    def __call__(self, picture: Image.Image, random: np.random.Generator) -> Image.Image:
        """One random variation of an "RGB" or "L" picture, of the same size and mode."""
        names = list(OPERATIONS)
        for choice in random.integers(len(names), size=self.layers):
            applied, spread, sign = random.random(), random.standard_normal(), 1 if random.random() < 0.5 else -1
            if applied < self.probability:
                magnitude = min(max(self.magnitude + self.spread * spread, 0.0), FULL)
                picture = OPERATIONS[names[choice]](picture, magnitude / FULL, sign, self.fill, self.increasing)
        return picture


def color_jitter(picture: Image.Image, strength: float, random: np.random.Generator) -> Image.Image:
    """Brightness, contrast and saturation by factors uniform in [max(0, 1 - strength), 1 + strength], in random
    order.
    """
    kinds = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    factors = random.uniform(max(0.0, 1 - strength), 1 + strength, size=3)
    for kind in random.permutation(3):
        picture = kinds[kind](picture).enhance(float(factors[kind]))
    return picture
