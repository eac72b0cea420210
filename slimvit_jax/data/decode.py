"""From the bytes of an image file to pixels, as torchvision's loader reads them (PIL, first frame, EXIF rotation
ignored).
"""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image, UnidentifiedImageError

from slimvit_jax.errors import SlimError

# Only plain raster formats: some of Pillow's readers start other programs (EPS) or are rarely exercised.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
MODES = {1: "L", 3: "RGB"}


class BadImage(SlimError):
    """The bytes are no image that can be read. Training skips such a record, evaluation stops."""


def check_channels(in_chans: int) -> int:
    """in_chans itself, if images can be read to so many channels (1 grey, 3 RGB); otherwise a SlimError."""
    if in_chans not in MODES:
        raise SlimError(f"images cannot be read to {in_chans} channels; choices: 1 (grey), 3 (RGB)")
    return in_chans


def decode(
    image: np.ndarray | bytes, in_chans: int = 3, name: str = "image", at_least: int | None = None
) -> Image.Image:
    """Decodes to a PIL image of mode "RGB" or "L".

    Args:
        image: the bytes of a file, or (H, W, C) uint8 pixels with C 1, 3 or 4.
        in_chans: 3 or 1; colour becomes grey by ITU-R 601 luma, grey is repeated, CMYK and palettes are converted,
            alpha is dropped, 16-bit greys are handled as Pillow's convert does: all as torchvision's loader.
        name: what to call the image in an error.
        at_least: lets a JPEG be decoded at a half, quarter or eighth of its size as long as its shorter side stays at
            least this long: faster, and for training augmentation good enough. None: exact.
    Raises:
        BadImage: whatever is wrong with the bytes, with `name`.
    """
    mode = MODES[check_channels(in_chans)]
    try:
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.ndim != 3 or 0 in image.shape:
                raise ValueError(f"pixels must be uint8 (H, W, C), not {image.dtype} {image.shape}")
            picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
            return picture if picture.mode == mode else picture.convert(mode)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about EXIF data and palettes: of no use to the reader of a training log
            picture = Image.open(io.BytesIO(image), formats=FORMATS)
            if at_least is not None:
                picture.draft(None, (at_least, at_least))
            return picture.convert(mode)
    except UnidentifiedImageError as error:
        raise BadImage(f"cannot read {name}: it is no image of a known kind ({', '.join(FORMATS)})") from error
    except Exception as error:  # Pillow's readers raise a dozen kinds on damaged bytes
        reason = str(error) or type(error).__name__
        raise BadImage(f"cannot read {name}: {reason.splitlines()[0][:200]}") from error


def to_array(picture: Image.Image) -> np.ndarray:
    """(H, W, C) uint8 of an "RGB" or "L" picture."""
    array = np.asarray(picture)
    return array[..., None] if array.ndim == 2 else array
