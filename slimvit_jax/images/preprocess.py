"""Evaluation preprocessing, equal to timm's: resize to size / crop_pct, centre crop, scale to 0..1, normalise."""

from __future__ import annotations

import math
import operator
from dataclasses import asdict, dataclass, fields, replace
from numbers import Real
from typing import Any

import numpy as np
from PIL import Image

from slimvit_jax.errors import SlimError, unknown
from slimvit_jax.images.decode import BadImage, Picture, called, check_channels, decode, to_array

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocess:
    """What a model expects of its input, and the way there.

    Attributes:
        img_size: side, or (height, width).
        in_chans: 3 or 1.
        mean, std: per channel (or one for all), for pixels in 0..1.
        interpolation: "nearest", "bilinear", "bicubic" or "lanczos".
        crop_pct: share of the resized image's side that the centre crop keeps.
        crop_mode: "center" keeps the aspect ratio; "squash" resizes both sides to the target (timm's names).
    """

    img_size: int | tuple[int, int] = 224
    in_chans: int = 3
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bicubic"
    crop_pct: float = 0.875
    crop_mode: str = "center"

    def __post_init__(self) -> None:
        check_channels(self.in_chans)
        object.__setattr__(self, "img_size", _sides(self.img_size))
        for field in ("mean", "std"):
            object.__setattr__(self, field, _per_channel(field, getattr(self, field), self.in_chans))
        if min(self.std) <= 0:
            raise SlimError(f"std must be positive, not {self.std}")
        if self.interpolation not in tuple(INTERPOLATIONS):  # of any type
            raise unknown("interpolation", self.interpolation, INTERPOLATIONS)
        if self.crop_mode not in ("center", "squash"):
            raise unknown("crop_mode", self.crop_mode, ("center", "squash"))
        if not (isinstance(self.crop_pct, Real) and 0 < self.crop_pct <= 1):
            raise SlimError(f"crop_pct must be in (0, 1], not {self.crop_pct!r}")

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the output."""
        return self.img_size  # type: ignore[return-value]

    @property
    def resample(self) -> Image.Resampling:
        return INTERPOLATIONS[self.interpolation]

    def replace(self, **changes: Any) -> Preprocess:
        """A copy with some fields changed; a SlimError names a field that there is not."""
        names = [field.name for field in fields(self)]
        for name in changes:
            if name not in names:
                raise unknown("field of the preprocessing", name, names)
        return replace(self, **changes)

    def fit(self, img_size: int | tuple[int, int], in_chans: int) -> Preprocess:
        """The same preparation for a model of another size or number of channels.

        One channel gets the mean of the colours' means and of their standard deviations; three get one channel's.
        """
        given = {"mean": self.mean, "std": self.std}
        if in_chans != self.in_chans:
            given = {name: (sum(values) / len(values),) for name, values in given.items()}
        return self.replace(img_size=img_size, in_chans=in_chans, **given)

    def for_display(self, least: int = 640) -> Preprocess:
        """The same crop with sides of at least so many pixels, to look at; small images, below 96, stay as they are."""
        short = min(self.size)
        times = 1 if short < 96 else math.ceil(least / short)
        return self.replace(img_size=(times * self.size[0], times * self.size[1]))

    def pixels(self, image: Picture, name: str = "", most_pixels: int | None = None) -> np.ndarray:
        """(H, W, C) uint8: decoded, resized and cropped, before normalising. BadImage for what cannot be read.

        `most_pixels`: as of `decode`.
        """
        name = name or called(image)
        picture = decode(image, self.in_chans, name, most_pixels=most_pixels)
        scaled = tuple(math.floor(side / self.crop_pct) for side in self.size)
        height, width = resized_shape((picture.height, picture.width), scaled, self.crop_mode)  # type: ignore[arg-type]
        if max(height, width) > 1 << 15:  # a 1 x 5000 strip, blown up to keep its aspect ratio
            raise BadImage(
                f"{name} is {picture.width} x {picture.height}: too elongated to resize to {width} x {height}"
            )
        if (height, width) != (picture.height, picture.width):
            picture = picture.resize((width, height), self.resample)
        return center_crop(to_array(picture), self.size)

    def normalise(self, pixels: np.ndarray) -> np.ndarray:
        """(..., W, C) uint8 or float 0..255 -> float32, (x / 255 - mean) / std."""
        mean, std = np.asarray(self.mean), np.asarray(self.std)
        factor, offset = (1 / (255 * std)).astype(np.float32), (-mean / std).astype(np.float32)
        # Whole rows at a time: numpy's inner loop over the channels alone is eight times slower.
        rows, width = pixels.reshape(*pixels.shape[:-2], -1), pixels.shape[-2]
        normalised = np.multiply(rows, np.tile(factor, width), dtype=np.float32)
        normalised += np.tile(offset, width)
        return normalised.reshape(pixels.shape)

    def __call__(self, image: Picture, name: str = "") -> np.ndarray:
        """(H, W, C) float32, ready for the model.

        Args:
            image: a path, a file's bytes, a PIL image of any mode, or uint8 pixels (H, W) or (H, W, 1 to 4).
            name: what to call it in an error; default: its path.
        """
        return self.normalise(self.pixels(image, name))

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON has them; `Preprocess(**fields)` is the inverse."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


def _sides(value: Any) -> tuple[int, int]:
    try:
        sides = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
        height, width = (0 if isinstance(side, bool) else operator.index(side) for side in sides)
    except (TypeError, ValueError):
        height = width = 0
    if min(height, width) < 1:
        raise SlimError(f"img_size must be a positive side or (height, width), not {value!r}")
    return height, width


def _per_channel(name: str, given: Any, channels: int) -> tuple[float, ...]:
    listed = tuple(given) if isinstance(given, (tuple, list, np.ndarray)) else (given,)
    if not all(isinstance(v, Real) and not isinstance(v, bool) and math.isfinite(v) for v in listed):
        raise SlimError(f"{name} must be made of finite numbers, not {given!r}")
    values = tuple(map(float, listed)) * (channels if len(listed) == 1 else 1)
    if len(values) != channels:
        raise SlimError(f"{name} has {len(values)} values for in_chans={channels}: {values}")
    return values


def resized_shape(shape: tuple[int, int], target: tuple[int, int], mode: str) -> tuple[int, int]:
    """(height, width) to resize `shape` to before the centre crop.

    "center": the smallest shape of the same aspect ratio that covers `target`, rounded as timm does, which differs
    between a square target (the longer side is cut to an int) and any other (both sides are rounded).
    """
    height, width = shape
    if mode == "squash":
        return target
    if target[0] == target[1]:
        longer = int(target[0] * max(shape) / min(shape))
        return (target[0], longer) if height <= width else (longer, target[0])
    ratio = min(height / target[0], width / target[1])
    return max(1, round(height / ratio)), max(1, round(width / ratio))


def center_crop(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The middle (h, w) of (H, W, C) pixels, padded with zeros where the image is smaller (as torchvision's)."""
    lack = [max(0, want - have) for want, have in zip(size, pixels.shape, strict=False)]
    if any(lack):
        pixels = np.pad(pixels, [(n // 2, (n + 1) // 2) for n in lack] + [(0, 0)])
    top, left = (round((have - want) / 2) for want, have in zip(size, pixels.shape, strict=False))
    return pixels[top : top + size[0], left : left + size[1]]
