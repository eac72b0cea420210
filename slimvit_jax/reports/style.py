"""How all pictures look, and how they get into files and captions into their columns."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.textpath import TextPath
from matplotlib.ticker import LogLocator

from slimvit_jax.errors import SlimError
from slimvit_jax.files import atomic_path
from slimvit_jax.text import printable

INK, QUIET, ACCENT, SECOND = "#22262b", "#8a939d", "#c8452f", "#2f6fb0"
LIVES = "viridis"
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.edgecolor": "#c3c9d0",
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e8ebee",
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "savefig.facecolor": "white",
    "savefig.dpi": 150,
}
#: For pictures with captions that are data: a$_{b$ is the name of a class.
OF_DATA: dict[Any, Any] = {**STYLE, "text.parse_math": False}
DRAWN_FORMATS = tuple(sorted(Figure().canvas.get_supported_filetypes()))


def save(figure: Figure, path: str | Path) -> Path:
    """Writes the file, its format by suffix, whole or not at all; a SlimError for a format there is not."""
    path = Path(path)
    if path.suffix.lower().lstrip(".") not in DRAWN_FORMATS:
        raise SlimError(
            f"cannot write a picture as {path.name!r}; endings: {', '.join('.' + f for f in DRAWN_FORMATS)}"
        )
    with atomic_path(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # in a name; a box stands for it
        figure.savefig(temporary)
    return path


def log_scale(axis: Any) -> None:
    """A logarithmic axis (`axes.xaxis`) with plain numbers at 1, 2 and 5: OF_DATA has no mathematics for powers."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_minor_locator(LogLocator(subs=(2, 5)))
    for set_formatter in (axis.set_major_formatter, axis.set_minor_formatter):
        set_formatter("{x:g}")


def fitted(text: object, points: float, size: float, lines: int = 2) -> str:
    """A caption broken into lines no wider than `points` at font size `size`; what is left over becomes "…".

    To be called inside of `rc_context(OF_DATA)`, whose font measures it.
    """
    width = lambda part: float(TextPath((0, 0), part, size=size).get_extents().width) if part.strip() else 0.0
    left = printable(text).strip()
    done: list[str] = []
    while left and len(done) < lines:
        end = len(left)
        if width(left) > points:
            fits = next((n for n in range(len(left) - 1, 0, -1) if width(left[:n] + "…") <= points), 1)
            space = left.rfind(" ", 0, fits + 1)
            end = space if space > 0 and len(done) < lines - 1 else fits
        last = len(done) == lines - 1 and end < len(left)
        done.append(left[:end].rstrip() + ("…" if last else ""))
        left = left[end:].strip()
    return "\n".join(done)
