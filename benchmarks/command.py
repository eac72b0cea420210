"""What the programs of this folder share: one line for bad input, and how they were called."""

from __future__ import annotations

import functools
import shlex
import sys
from collections.abc import Callable, Sequence

from slimvit_jax.errors import SlimError


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


def command_line(module: str, words: Sequence[str] | None = None) -> str:
    """The command line of `python -m benchmarks.MODULE`, with these words or those of this process."""
    return shlex.join(["python", "-m", f"benchmarks.{module}", *(sys.argv[1:] if words is None else words)])
