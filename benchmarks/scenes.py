"""Scenes with masks that are known to the pixel: objects of Fashion-MNIST pasted into photographs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from benchmarks.saliency import SIDE, spread_files
from slimvit_jax.data.idx import FASHION, PREFIXES, read_idx

CLASSES = ("background", *FASHION)
KINDS = ("background", "top", "trousers", "dress", "shoe", "bag")
#: The class of each of CLASSES in each task.
TASKS = {
    "objects": (0, *[1] * len(FASHION)),
    "kinds": tuple(
        map(KINDS.index, ("background", "top", "trousers", "top", "dress", "top", "shoe", "top", "shoe", "bag", "shoe"))
    ),
}
OBJECTS, SMALLEST, LARGEST = 3, 64, 120  # per scene, and their sides in pixels


def scene(photo: np.ndarray, objects: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> tuple[Any, Any]:
    """A photograph (S, S, 3) uint8 with objects (k, 28, 28) pasted in, and the (S, S) uint8 class of every pixel."""
    picture, mask = photo.astype(np.float32), np.zeros(photo.shape[:2], np.uint8)
    for pixels, label in zip(objects, labels, strict=True):
        side = int(rng.integers(SMALLEST, LARGEST + 1))
        top, left = rng.integers(0, len(photo) - side + 1, 2)
        place = np.s_[top : top + side, left : left + side]
        large = lambda image, side=side: np.asarray(
            Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)
        )
        shape = large(np.uint8(255) * (pixels > 0)) > 127
        tinted = large(pixels)[..., None] * rng.uniform(0.4, 1.0, 3)
        picture[place] = np.where(shape[..., None], tinted, picture[place])
        mask[place] = np.where(shape, label + 1, mask[place])
    return picture.astype(np.uint8), mask


def scenes(folder: Path, split: str, count: int, fashion: Path) -> tuple[np.ndarray, np.ndarray]:
    """(n, S, S, 3) uint8 scenes and their (n, S, S) classes. The same every time."""
    files = spread_files(folder, count)
    prefix = PREFIXES[split]
    objects = read_idx(fashion / f"{prefix}-images-idx3-ubyte.gz", 3)
    labels = read_idx(fashion / f"{prefix}-labels-idx1-ubyte.gz", 1)
    rng, made = np.random.default_rng(0 if split == "train" else 1), []
    for file in files:
        photo = np.asarray(ImageOps.fit(Image.open(file).convert("RGB"), (SIDE, SIDE)))
        chosen = rng.choice(len(objects), OBJECTS, replace=False)
        made.append(scene(photo, objects[chosen], labels[chosen], rng))
    return np.stack([picture for picture, _ in made]), np.stack([mask for _, mask in made])


def classes_of(masks: np.ndarray, task: str) -> np.ndarray:
    """The masks' classes as the task counts them."""
    return np.take(np.asarray(TASKS[task], np.uint8), masks)


def shares(masks: np.ndarray, patch: int, classes: int = len(CLASSES)) -> np.ndarray:
    """(n, S, S) numbers of classes to (n, S / patch, S / patch, classes): their shares among a patch's pixels."""
    n, side = len(masks), masks.shape[1] // patch
    cut = masks.reshape(n, side, patch, side, patch).transpose(0, 1, 3, 2, 4).reshape(n, side, side, -1)
    return np.stack([(cut == k).mean(axis=-1, dtype=np.float32) for k in range(classes)], axis=-1)
