"""docs/pictures/serve.png, the page of `slimvit serve` in a real browser: wide and light, narrow and dark.

    slimvit serve --workdir runs/digits &              # the run of the README's first command
    python docs/make_serve_picture.py http://127.0.0.1:8000/

The image is one of scikit-learn's handwritten digits. Needs what the test of the page needs: selenium, a Chromium.
"""

import io
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from browser import chromium  # noqa: E402

DIGIT, SCALE, GAP = 45, 1.25, 30


def photograph(url: str, file: Path, width: int, height: int, dark: bool) -> Image.Image:
    """The page with the image of `file`."""
    with chromium(width, height, SCALE, dark) as page:
        page.get(url)
        until = time.monotonic() + 60
        while not page.execute_script("return model !== null") and time.monotonic() < until:
            time.sleep(0.1)
        page.find_element("id", "file").send_keys(str(file))
        while not page.execute_script("return shown !== null") and time.monotonic() < until:
            time.sleep(0.1)
        time.sleep(0.5)  # what is moving comes to rest
        return Image.open(io.BytesIO(page.get_screenshot_as_png())).convert("RGB")


def main(url: str) -> None:
    pixels = (load_digits().images[DIGIT] * 255 / 16).clip(0, 255).astype(np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "digit.png"
        Image.fromarray(pixels).save(file)
        shots = [photograph(url, file, 1180, 720, False), photograph(url, file, 390, 720, True)]
    gap = round(GAP * SCALE)
    picture = Image.new("RGB", (sum(shot.width for shot in shots) + gap, shots[0].height), "white")
    picture.paste(shots[0], (0, 0))
    picture.paste(shots[1], (shots[0].width + gap, 0))
    picture.quantize(256).save(ROOT / "docs" / "pictures" / "serve.png", optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
