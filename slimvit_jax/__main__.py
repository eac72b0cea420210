"""`python -m slimvit_jax COMMAND`, also installed as `slimvit`.

A command is the module of its name in `cli`: `add_arguments(parser)`, and `run`, of the parsed arguments, which returns
the exit status. Only the module of the command that is called is imported.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import re
import sys
from collections.abc import Sequence
from typing import NoReturn

from slimvit_jax.errors import SlimError
from slimvit_jax.huge_pages import restart_with_huge_pages
from slimvit_jax.text import hints_for

#: What there is, and a line about each.
COMMANDS = {
    "train": "train by a config, stage after stage",
    "models": "list the models with parameters, multiply-adds and preprocessing",
    "convert": "convert a weights file to another kind",
    "evaluate": "measure the accuracy on a labelled set of images",
    "predict": "classify image files and draw the lives of their patches",
    "visualize": "draw weight curves, lives and what is kept",
    "benchmark": "time slimmed models against the dense one",
    "export": "write the inference function as an ONNX or StableHLO file",
    "tune": "find the token counts for a latency, without labels and without training",
    "serve": "answer over HTTP, with a page that shows what is kept",
    "report": "write the report of a training run anew",
    "config": "print the complete configuration of a configs/NAME.py",
}


class _Parser(argparse.ArgumentParser):
    """Errors in one line: the usage is one `--help` away."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see --help)\n")


def parser_of(wanted: str | None) -> argparse.ArgumentParser:
    """The parser of the whole command line, of which only the command `wanted` has its arguments."""
    parser = _Parser(prog="slimvit", description="Token slimming for vision transformers.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, line in COMMANDS.items():
        command = commands.add_parser(name, help=line)
        if name == wanted:
            module = importlib.import_module(f"slimvit_jax.cli.{name}")
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit status: 0, 2 for bad input, 130 when interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name in bytes that are no UTF-8 is shown, not fatal
        sys.stdout.reconfigure(errors="backslashreplace")
    wanted = next((word for word in arguments if not word.startswith("-")), None)
    parser = parser_of(wanted)
    try:
        args, rest = parser.parse_known_args(arguments)
        if getattr(args, "takes_fields", False):
            args.fields = rest
        elif rest:
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        for word in arguments:  # "--out=$OUT" where OUT is not set: nobody means the default by it
            if re.fullmatch(r"--[a-z-]+=", word):
                parser.error(f"{word} has no value: give one, or leave it out")
        with hints_for("flags"):
            return int(args.run(args) or 0)
    except SystemExit as stop:  # argparse: 0 after --help, 2 after an error
        return stop.code if isinstance(stop.code, int) else 2
    except SlimError as error:
        message = " ".join(str(error).split())
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        message = f"out of memory: {(str(error).splitlines() or [''])[0]}"
    except BrokenPipeError:  # the reader of our output left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        message = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    except KeyboardInterrupt:
        message = "interrupted"
        print(f"slimvit {wanted}: {message}", file=sys.stderr)
        return 130
    print(f"slimvit {wanted}: error: {message}", file=sys.stderr)
    return 2


def program() -> NoReturn:
    """The installed command."""
    restart_with_huge_pages()
    sys.exit(main())


if __name__ == "__main__":
    program()
