"""Tables and progress bars on a terminal. What they hold is data: no markup, no emoji, no control codes."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text
from tqdm import tqdm

from slimvit_jax.text import printable


class _Table(Table):
    """Cells, heads and title are taken as they are."""

    def add_row(self, *cells: Any, **options: Any) -> None:
        super().add_row(*(Text(printable(cell)) for cell in cells), **options)


def table(*columns: str, title: str | None = None) -> Table:
    """A rich table whose first column is text and whose others are right-aligned numbers."""
    head = None if title is None else Text(printable(title))
    result = _Table(box=box.SIMPLE_HEAD, title=head, title_justify="left", pad_edge=False, padding=(0, 1, 0, 0))
    for place, column in enumerate(columns):
        result.add_column(Text(column), justify="right" if place else "left", no_wrap=True)
    return result


def show(*parts: Any) -> None:
    """Prints tables or text to standard output, as wide as they are: a narrow terminal wraps lines, nothing is cut."""
    console = Console(highlight=False, soft_wrap=True)
    shown = [Text(printable(part)) if isinstance(part, str) else part for part in parts]
    wide = console.options.update(width=1000)
    console.width = max([console.width, *(Measurement.get(console, wide, part).maximum for part in shown)])
    console.print(*shown)


@contextlib.contextmanager
def progress(title: str, total: int, unit: str = "images", seconds: float = 30.0) -> Iterator[Callable[[int], None]]:
    """A progress bar on standard error over `total` units; yields a function of the number done so far.

    Shows units/s and the time left. Where standard error is no terminal: a line, at most one every `seconds`.
    """
    began = said = time.monotonic()
    with tqdm(total=total, desc=printable(title), unit=f" {unit}", leave=False, disable=None) as bar:

        def advance(done: int) -> None:
            nonlocal said
            done = min(done, total)
            bar.update(done - bar.n)
            now = time.monotonic()
            if bar.disable and done and now - said >= seconds:
                said, left = now, (now - began) / done * (total - done)
                print(printable(f"{title}: {done}/{total} {unit}, {left:.0f} s left"), file=sys.stderr, flush=True)

        yield advance
