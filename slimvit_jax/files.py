"""Writing files so that a reader sees a whole file or none."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yields a temporary name beside `path` with its suffix; renames it to `path` when the block ends without an error.

    The folder is made if it is missing. A failed block leaves nothing behind and any earlier file as it was. Errors are
    the OSErrors of the file system.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Writes `text` as UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Writes `value` as indented JSON, atomically; what JSON has no form for (NaN included) is an error."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")
