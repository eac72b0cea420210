"""Writing files so that a reader sees a whole file or none; reading text files of any origin."""

from __future__ import annotations

import codecs
import contextlib
import errno
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from slimvit_jax.errors import SlimError


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yields a temporary name beside `path` with its suffix; renames it to `path` when the block ends without an error.

    The folder is made if it is missing. A failed block leaves nothing behind and any earlier file as it was. Errors are
    the OSErrors of the file system; they name `path`, which the caller knows, in place of the temporary file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    temporary = path.with_name(f".{path.stem[:50]}.{secrets.token_hex(4)}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.filename is not None and os.fspath(error.filename) == str(temporary):
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        temporary.unlink(missing_ok=True)


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file, or of a UTF-16 one that says so by its byte order mark; the mark is no part of it.

    Raises:
      SlimError: the file is not there, or its bytes are neither.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise SlimError(f"cannot read {str(path)!r}: {error.strerror}") from error
    codec = "utf-16" if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
    try:
        text = data.decode(codec)
    except UnicodeDecodeError as error:
        where = f"line {data.count(10, 0, error.start) + 1}, byte 0x{data[error.start]:02x}"
        raise SlimError(f"{str(path)!r} is not UTF-8 text ({where}); save it as UTF-8") from None
    if "\0" in text:
        raise SlimError(f"{str(path)!r} is not UTF-8 text (it holds zero bytes); save it as UTF-8")
    return text


def write_text(path: str | Path, text: str) -> None:
    """Writes `text` as UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """The content of a JSON file; a SlimError, which names the file, for what cannot be read or is not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise SlimError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # JSON's errors, and text in another encoding
        raise SlimError(f"{path}: damaged, or no JSON: {error}") from error


def write_json(path: str | Path, value: Any) -> None:
    """Writes `value` as indented JSON, atomically; what JSON has no form for (NaN included) is an error."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")
