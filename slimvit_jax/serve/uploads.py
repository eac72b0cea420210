"""What comes in: the limits, and the body of a request as the bytes of a file."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import io

from PIL import Image
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from slimvit_jax.images import Preprocess


@dataclasses.dataclass(frozen=True)
class Limits:
    """What the server takes on.

    Attributes:
      upload_bytes: of one image file.
      pixels: of one image, as its header has them.
      places: images in the house at once: uploading, decoding, waiting, running.
      wait: seconds that an image waits for others to share its batch.
      upload_seconds: for the body of one request.
    """

    upload_bytes: int = 20_000_000
    pixels: int = 50_000_000
    places: int = 64
    wait: float = 0.003
    upload_seconds: float = 30.0


async def body_of(request: Request, limits: Limits) -> bytes:
    """The uploaded file; what is too long is refused before it is read where its length is known.

    Raises:
      HTTPException: it is empty, too long, too slow, broken off, or packed into a form.
    """
    most = limits.upload_bytes
    if request.headers.get("content-type", "").lower().startswith("multipart/"):
        raise HTTPException(415, "send the bytes of the image file as the body, not a form")
    length = int(request.headers.get("content-length", 0))
    body = bytearray()
    if length <= most:
        try:
            async with asyncio.timeout(limits.upload_seconds):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > most:
                        break
        except TimeoutError:
            message = f"the upload took longer than {limits.upload_seconds:g} s"
            raise HTTPException(408, message, {"connection": "close"}) from None
        except ClientDisconnect:
            raise HTTPException(400, "the upload broke off") from None
    if max(length, len(body)) > most:
        # The rest of a file not much larger is read past and the client hears us; otherwise we hang up.
        hang_up = {"connection": "close"} if not length or length > 8 * most else None
        raise HTTPException(413, f"the file is too long: at most {most:,} bytes are read", hang_up)
    if not body:
        raise HTTPException(400, "the body is empty; send the bytes of an image file")
    return bytes(body)


def picture_of(display: Preprocess, data: bytes) -> str:
    """What the model sees of an image, as a data URL."""
    pixels = display.pixels(data)
    picture, file = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels), io.BytesIO()
    kind = "png" if max(picture.size) < 96 else "jpeg"
    picture.save(file, kind, **({} if kind == "png" else {"quality": 90}))
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
