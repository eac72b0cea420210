"""What the programs of this folder share: their words, one line for bad input, and files of a row a line."""

from __future__ import annotations

import functools
import json
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from slimvit_jax.errors import SlimError
from slimvit_jax.files import write_text


def in_one_line(main: Callable[..., int]) -> Callable[..., int]:
    """`main` of a program; bad input, a SlimError, becomes one line on standard error and exit status 2."""
    spec = sys.modules[main.__module__].__spec__  # its name is that of the file, whoever runs it

    @functools.wraps(main)
    def run(argv: Sequence[str] | None = None) -> int:
        try:
            return main(argv)
        except SlimError as error:
            print(f"{spec.name if spec else main.__module__}: error: {error}", file=sys.stderr)
            return 2

    return run


def command_line(module: str, words: Sequence[str] | None = None, folders: bool = True) -> str:
    """The command line of `python -m benchmarks.MODULE`, with these words or those of this process.

    Without `folders` of "--out=/a/b/c" only "--out=c" is left: nothing of the machine.
    """
    words = sys.argv[1:] if words is None else words
    words = words if folders else [re.sub(r"=/.*/", "=", word) for word in words]
    return shlex.join(["python", "-m", f"benchmarks.{module}", *words])


def listed(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """For argparse: words between commas, each read by `kind`."""
    return lambda text: [kind(part) for part in text.split(",") if part]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines; [] where there is none.

    Raises:
      SlimError: it holds something else.
    """
    if not path.exists():
        return []
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise SlimError(f"{path}: {error}") from error


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Writes rows as JSON lines, all of them or none."""
    write_text(path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))
