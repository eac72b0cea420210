"""Training augmentation on the host: every random choice comes from a generator the caller hands in.

Two kinds: "crop" works image by image with PIL, as DeiT trains (random resized crop, flip, RandAugment or colour
jitter, random erasing); "shift" moves, turns and scales a whole batch of small images of one size at once. Mixup and
cutmix run on the
device: mixup.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from slimvit_jax.data.randaugment import RandAugment, color_jitter
from slimvit_jax.errors import SlimError, unknown
from slimvit_jax.images.decode import to_array
from slimvit_jax.images.preprocess import Preprocess

KINDS = ("none", "crop", "shift")
Box = tuple[int, int, int, int]  # left, top, right, bottom


@dataclass(frozen=True)
class Augment:
    """What happens to a training image.

    Attributes:
        kind: "none" (the evaluation preprocessing), "crop" or "shift".
        hflip: probability of a left-right flip.
        crop_scale, crop_ratio: range of the crop's share of the area and of its width / height ("crop").
        interpolation: of the crop: one of Preprocess's names, "random" (bilinear or bicubic) or None, the
            Preprocess's own.
        color_jitter: brightness, contrast and saturation change by a factor in 1 +- this ("crop"; not with
            RandAugment).
        randaugment: None or a description such as "rand-m9-mstd0.5-inc1" (randaugment.py) ("crop").
        erase_prob, erase_mode: random erasing, of "pixel" (a normal value per pixel) or "const" (the mean colour)
            ("crop").
        shift, rotate, scale: largest move as a fraction of the side, turn in degrees, change of size as a fraction
            ("shift").
    """

    kind: str = "none"
    hflip: float = 0.0
    crop_scale: tuple[float, float] = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: str | None = None
    color_jitter: float = 0.0
    randaugment: str | None = None
    erase_prob: float = 0.0
    erase_mode: str = "pixel"
    shift: float = 0.0
    rotate: float = 0.0
    scale: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown("augmentation kind", self.kind, KINDS)
        if self.erase_mode not in ("pixel", "const"):
            raise unknown("erase_mode", self.erase_mode, ("pixel", "const"))
        if self.interpolation not in (None, "random", "nearest", "bilinear", "bicubic", "lanczos"):
            raise unknown(
                "crop interpolation", self.interpolation, ("random", "nearest", "bilinear", "bicubic", "lanczos")
            )
        for name in ("hflip", "erase_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise SlimError(f"augmentation {name} must be in [0, 1], not {getattr(self, name)}")
        for name in ("color_jitter", "shift", "rotate", "scale"):
            if getattr(self, name) < 0:
                raise SlimError(f"augmentation {name} must not be negative, not {getattr(self, name)}")
        if self.scale >= 1:
            raise SlimError(f"augmentation scale must be below 1, not {self.scale}")
        for name in ("crop_scale", "crop_ratio"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise SlimError(f"augmentation {name} must be (low, high) with 0 < low <= high, not {(low, high)}")
        if self.crop_scale[1] > 1:
            raise SlimError(f"augmentation crop_scale must not exceed 1, not {self.crop_scale}")
        if self.randaugment:
            RandAugment.parse(self.randaugment)


class CropAugment:
    """Augment.kind "crop" for one image: picture and generator -> (H, W, C) uint8 and the rectangle to erase."""

    def __init__(self, augment: Augment, preprocess: Preprocess) -> None:
        self._augment, self._preprocess = augment, preprocess
        fill = tuple(round(255 * m) for m in preprocess.mean)
        self._policy = RandAugment.parse(augment.randaugment, fill) if augment.randaugment else None
        choices = {None: (preprocess.interpolation,), "random": ("bilinear", "bicubic")}
        names = choices.get(augment.interpolation, (augment.interpolation,))  # type: ignore[arg-type]
        self._resamples = [preprocess.replace(interpolation=name).resample for name in names]

    @property
    def at_least(self) -> int:
        """How long the shorter side of a JPEG must stay when decoding at reduced size: typical crops still shrink."""
        return 2 * max(self._preprocess.size)

    def __call__(self, picture: Image.Image, random: np.random.Generator) -> tuple[np.ndarray, Box]:
        augment, (height, width) = self._augment, self._preprocess.size
        box = crop_box(picture.height, picture.width, augment.crop_scale, augment.crop_ratio, random)
        resample = self._resamples[int(random.integers(len(self._resamples)))]
        picture = picture.resize((width, height), resample, box=box)
        if random.random() < augment.hflip:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self._policy is not None:
            picture = self._policy(picture, random)
        elif augment.color_jitter:
            picture = color_jitter(picture, augment.color_jitter, random)
        nothing = (0, 0, 0, 0)
        return to_array(picture), erase_box(height, width, random) if random.random() < augment.erase_prob else nothing


def crop_box(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], random: np.random.Generator
) -> Box:
    """(left, top, right, bottom) of a random resized crop: area share uniform, aspect ratio log-uniform, ten attempts.

    The same distribution as torchvision's RandomResizedCrop, which falls back to the largest centre crop within
    `ratio`.
    """
    shares = random.uniform(*scale, size=10)
    aspects = np.exp(random.uniform(math.log(ratio[0]), math.log(ratio[1]), size=10))
    for share, aspect in zip(shares.tolist(), aspects.tolist(), strict=True):
        w = round(math.sqrt(height * width * share * aspect))
        h = round(math.sqrt(height * width * share / aspect))
        if 0 < w <= width and 0 < h <= height:
            top, left = int(random.integers(height - h + 1)), int(random.integers(width - w + 1))
            return left, top, left + w, top + h
    aspect = min(max(width / height, ratio[0]), ratio[1])
    w, h = (width, round(width / aspect)) if width / height < aspect else (round(height * aspect), height)
    w, h = min(max(w, 1), width), min(max(h, 1), height)
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def erase_box(height: int, width: int, random: np.random.Generator) -> Box:
    """(left, top, right, bottom) of random erasing: 2 % to a third of the area, sides up to 1 : 3.3 (timm's bounds)."""
    for _ in range(10):
        area = random.uniform(0.02, 1 / 3) * height * width
        aspect = math.exp(random.uniform(math.log(0.3), math.log(1 / 0.3)))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if h < height and w < width:
            top, left = int(random.integers(height - h + 1)), int(random.integers(width - w + 1))
            return left, top, left + w, top + h
    return 0, 0, 0, 0


def erase(pixels: np.ndarray, box: Box, mode: str, random: np.random.Generator) -> None:
    """Fills a box of (H, W, C) normalised floats in place: with normal noise ("pixel") or the mean colour ("const")."""
    left, top, right, bottom = box
    hole = pixels[top:bottom, left:right]
    hole[:] = random.standard_normal(hole.shape, np.float32) if mode == "pixel" else 0.0


def shift_batch(images: np.ndarray, augment: Augment, choices: np.ndarray) -> np.ndarray:
    """Moves, turns, scales and flips a batch of small images with bilinear sampling; outside is black.

    Args:
        images: (B, H, W, C) uint8 (or float).
        choices: (B, 5) uniform in [0, 1): one row of random numbers per image (vertical, horizontal move, angle,
            size, flip).
    Returns:
        (B, H, W, C) float32 on the scale of the input.
    """
    batch, height, width, channels = images.shape
    if augment.hflip:
        flip = choices[:, 4] < augment.hflip
        images = np.where(flip[:, None, None, None], images[:, :, ::-1], images)
    if not (augment.shift or augment.rotate or augment.scale):
        return images.astype(np.float32)
    signed = 2 * choices[:, :4].astype(np.float32) - 1
    move_y, move_x = signed[:, 0] * augment.shift * height, signed[:, 1] * augment.shift * width
    angle, size = np.deg2rad(signed[:, 2] * augment.rotate), 1 / (1 + signed[:, 3] * augment.scale)
    cos, sin = (np.cos(angle) * size)[:, None, None], (np.sin(angle) * size)[:, None, None]
    y = np.arange(height, dtype=np.float32)[None, :, None] - (height - 1) / 2 - move_y[:, None, None]
    x = np.arange(width, dtype=np.float32)[None, None, :] - (width - 1) / 2 - move_x[:, None, None]
    # One pixel of border makes "outside" ordinary pixels: every coordinate is clipped onto it.
    bordered = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0))).reshape(-1, channels)
    source_y = np.clip(cos * y - sin * x + (height + 1) / 2, 0, height + 1)
    source_x = np.clip(sin * y + cos * x + (width + 1) / 2, 0, width + 1)
    floor_y, floor_x = np.minimum(np.floor(source_y), height), np.minimum(np.floor(source_x), width)
    dy, dx = (source_y - floor_y)[..., None], (source_x - floor_x)[..., None]
    top, left = floor_y.astype(np.int32), floor_x.astype(np.int32)
    stride = width + 2
    corner = (np.arange(batch, dtype=np.int32) * ((height + 2) * stride))[:, None, None] + top * stride + left
    upper = bordered[corner] * (1 - dx) + bordered[corner + 1] * dx
    lower = bordered[corner + stride] * (1 - dx) + bordered[corner + stride + 1] * dx
    return upper * (1 - dy) + lower * dy
