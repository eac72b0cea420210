"""Evaluation preprocessing, equal to timm's: resize to size / crop_pct, centre crop, scale to 0..1, normalise."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from slimvit_jax.data.decode import BadImage, check_channels, decode, to_array
from slimvit_jax.errors import SlimError, unknown

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
        size = (self.img_size,) * 2 if isinstance(self.img_size, int) else tuple(int(side) for side in self.img_size)
        if len(size) != 2 or min(size) < 1:
            raise SlimError(f"img_size must be a positive side or (height, width), not {self.img_size!r}")
        object.__setattr__(self, "img_size", size)
        for field in ("mean", "std"):
            given = getattr(self, field)
            values = (float(given),) if isinstance(given, int | float) else tuple(float(v) for v in given)
            if len(values) == 1:
                values *= self.in_chans
            if len(values) != self.in_chans:
                raise SlimError(f"{field} has {len(values)} values for in_chans={self.in_chans}: {values}")
            object.__setattr__(self, field, values)
        if min(self.std) <= 0:
            raise SlimError(f"std must be positive, not {self.std}")
        if self.interpolation not in INTERPOLATIONS:
            raise unknown("interpolation", self.interpolation, INTERPOLATIONS)
        if self.crop_mode not in ("center", "squash"):
            raise unknown("crop_mode", self.crop_mode, ("center", "squash"))
        if not 0 < self.crop_pct <= 1:
            raise SlimError(f"crop_pct must be in (0, 1], not {self.crop_pct}")

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the output."""
        return self.img_size  # type: ignore[return-value]

    @property
    def resample(self) -> Image.Resampling:
        return INTERPOLATIONS[self.interpolation]

    def replace(self, **changes: object) -> Preprocess:
        """A copy with some fields changed."""
        return replace(self, **changes)  # type: ignore[arg-type]

    def pixels(self, image: Image.Image | np.ndarray | bytes, name: str = "image") -> np.ndarray:
        """(H, W, C) uint8: decoded, resized and cropped, before normalising. BadImage where the bytes are damaged."""
        picture = image if isinstance(image, Image.Image) else decode(image, self.in_chans, name)
        scaled = tuple(math.floor(side / self.crop_pct) for side in self.size)
        height, width = resized_shape((picture.height, picture.width), scaled, self.crop_mode)  # type: ignore[arg-type]
        if max(height, width) > 1 << 15:  # a 1 x 5000 strip, blown up to keep its aspect ratio
            raise BadImage(
                f"{name} is {picture.width} x {picture.height}: too elongated to resize to {width} x {height}"
            )
        if (height, width) != (picture.height, picture.width):
            picture = picture.resize((width, height), self.resample)
        return center_crop(to_array(picture), self.size)

    def normalise(self, pixels: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """(..., W, C) uint8 or float 0..255 -> float32, (x / 255 - mean) / std; into `out` (contiguous) where given."""
        width = pixels.shape[-2]
        if out is None:
            out = np.empty(pixels.shape, np.float32)
        # Whole rows at a time: numpy's inner loop over the channels alone is eight times slower.
        rows = out.reshape(*pixels.shape[:-2], -1)
        np.multiply(pixels.reshape(rows.shape), np.tile(self.factor, width), out=rows, dtype=np.float32)
        rows += np.tile(self.offset, width)
        return out

    @property
    def factor(self) -> np.ndarray:
        """(C,) float32: what a 0..255 value is multiplied by."""
        return (1 / (255 * np.asarray(self.std))).astype(np.float32)

    @property
    def offset(self) -> np.ndarray:
        """(C,) float32: the normalised value of black."""
        return (-np.asarray(self.mean) / np.asarray(self.std)).astype(np.float32)

    def __call__(self, image: Image.Image | np.ndarray | bytes, name: str = "image") -> np.ndarray:
        """(H, W, C) float32, ready for the model."""
        return self.normalise(self.pixels(image, name))


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
