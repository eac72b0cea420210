"""From a picture in any form to RGB or grey pixels: one rule for files and for what Python has in hand.

As torchvision's loader (PIL, first frame), but for what would be lost or wrong there: the EXIF orientation is applied,
transparent pictures are laid on `BACKGROUND`, and 16-bit greys are scaled to 8 bits, where Pillow clips them to white.
"""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from slimvit_jax.errors import SlimError, first_line

#: What can be prepared: a file's path or bytes, a picture of any mode, uint8 pixels (H, W) or (H, W, 1 to 4).
Picture = str | os.PathLike[str] | bytes | Image.Image | np.ndarray

# Only plain raster formats: some of Pillow's readers start other programs (EPS) or are rarely exercised.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
MODES = {1: "L", 3: "RGB"}
BACKGROUND = (255, 255, 255)  # behind transparent pictures: white, as pages and viewers show them
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BadImage(SlimError):
    """What was given is no image that can be read. Training skips such a record, evaluation stops."""


class LargeImage(BadImage):
    """It has more pixels than were asked for."""


def check_channels(in_chans: int) -> int:
    """in_chans itself, if images can be read to so many channels (1 grey, 3 RGB); otherwise a SlimError."""
    if in_chans not in MODES:
        raise SlimError(f"images cannot be read to {in_chans} channels; choices: 1 (grey), 3 (RGB)")
    return in_chans


def decode(
    image: Picture, in_chans: int = 3, name: str = "", at_least: int | None = None, most_pixels: int | None = None
) -> Image.Image:
    """Decodes to an upright, opaque PIL image of mode "RGB" or "L".

    Args:
        image: see `Picture`.
        in_chans: 3 or 1; colour becomes grey by ITU-R 601 luma, grey is repeated, CMYK and palettes are converted.
        name: what to call the image in an error; default: its path, or "image".
        at_least: lets a JPEG be decoded at a half, quarter or eighth of its size as long as its shorter side stays at
            least this long: faster, and for training augmentation good enough. None: exact.
        most_pixels: refuse a picture of more, which its header tells before anything is decoded. None: Pillow's limit.
    Raises:
        BadImage: whatever is wrong with it, with its name; `LargeImage` for more than `most_pixels`.
    """
    mode = MODES[check_channels(in_chans)]
    name = name or called(image)
    image = read_file(image) if isinstance(image, (str, os.PathLike)) else image
    picture: Image.Image
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about EXIF data and palettes: of no use to the reader of a training log
            if isinstance(image, bytes):
                file = Image.open(io.BytesIO(image), formats=FORMATS)
                if at_least is not None:
                    file.draft(None, (at_least, at_least))
                picture = file
            else:
                picture = image if isinstance(image, Image.Image) else _from_array(image)
            if most_pixels is not None and picture.width * picture.height > most_pixels:
                raise LargeImage(
                    f"{name} has {picture.width} x {picture.height} pixels; at most {most_pixels:,} are read"
                )
            picture.load()
            upright = _UPRIGHT.get(_orientation(picture))
            picture = _opaque(_eight_bits(picture))
            picture = picture if picture.mode == mode else picture.convert(mode)
            return picture if upright is None else picture.transpose(upright)
    except LargeImage:
        raise
    except Image.DecompressionBombError as error:
        raise LargeImage(f"cannot read {name}: {error}") from error
    except UnidentifiedImageError as error:
        raise BadImage(f"cannot read {name}: it is no image of a known kind ({', '.join(FORMATS)})") from error
    except Exception as error:  # Pillow's readers raise a dozen kinds on damaged bytes
        raise BadImage(f"cannot read {name}: {first_line(error)}") from error


def called(image: Picture) -> str:
    """What to call a picture that has no name: its path, or "image"."""
    return os.fspath(image) if isinstance(image, (str, os.PathLike)) else "image"


def read_file(path: str | os.PathLike[str]) -> bytes:
    """The bytes of an image file; a BadImage for what is none, such as a folder or a pipe, which is not waited for."""
    file, name = Path(path), os.fspath(path)
    if not name or not file.exists():
        raise BadImage(f"no image file {name!r}")
    if not file.is_file():
        raise BadImage(f"{name!r} is a {'folder' if file.is_dir() else 'pipe or device'}, not an image file")
    try:
        return file.read_bytes()
    except OSError as error:
        raise BadImage(f"cannot read image file {name!r}: {error.strerror}") from error


def to_array(picture: Image.Image) -> np.ndarray:
    """(H, W, C) uint8 of an "RGB" or "L" picture."""
    array = np.asarray(picture)
    return array[..., None] if array.ndim == 2 else array


def _from_array(pixels: Any) -> Image.Image:
    pixels = np.asarray(pixels)
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or 0 in pixels.shape or channels > 4:
        raise ValueError(f"pixels must be uint8 (H, W) or (H, W, 1 to 4), not {pixels.dtype} {pixels.shape}")
    return Image.fromarray(pixels[..., 0] if pixels.ndim == 3 and channels == 1 else pixels)


def _orientation(picture: Image.Image) -> int:
    """EXIF's, 1 to 8 where there is one. Damaged EXIF data do not make a picture unreadable."""
    try:
        return int(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # Pillow's reader raises many kinds
        return 1


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Greys of 16 bits to their upper byte, as Pillow reads colours of 16 bits; others unchanged."""
    mode, kind = picture.mode, picture.format
    if mode.startswith("I;16") or (mode == "I" and kind in ("PNG", "PPM")):
        return Image.fromarray((np.asarray(picture).astype(np.int32) >> 8).clip(0, 255).astype(np.uint8))
    if mode in ("I", "F"):
        kind = "32-bit integers" if mode == "I" else "floating-point numbers"
        raise ValueError(f"its pixels are {kind} of no stated range; save it with 8 or 16 bits")
    return picture


def _opaque(picture: Image.Image) -> Image.Image:
    """The picture laid on BACKGROUND where it is transparent."""
    if not picture.has_transparency_data:
        return picture
    picture = (picture.convert("LA") if picture.mode == "La" else picture).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, (*BACKGROUND, 255)), picture).convert("RGB")
