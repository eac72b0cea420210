"""`slimvit train` and train.py: a config, stage after stage, and its report."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence

from slimvit_jax.errors import SlimError
from slimvit_jax.text import hints_for

DESCRIPTION = """Trains by a config, stage after stage, and writes the report. The same command goes on after a stop.

Exit status: 0 done; 1 stopped by a loss that is not finite or a full disk; 2 bad input; 143 stopped by SIGTERM (130 by
Ctrl-C), everything saved."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--config, --workdir and --profile; further words, `takes_fields`, are fields of the config."""
    parser.description = DESCRIPTION
    parser.formatter_class, parser.allow_abbrev = argparse.RawDescriptionHelpFormatter, False
    parser.epilog = "--config.FIELD=VALUE sets a config field"
    parser.set_defaults(takes_fields=True)
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE",
        help="the NAME of a config that comes with the package (configs/NAME.py), or a Python file with get_config()",
    )
    parser.add_argument("--workdir", required=True, metavar="DIR", help="where the run lives; made if missing")
    parser.add_argument(
        "--profile", nargs="?", const="5", metavar="STEPS", help="trace so many steps of each stage (5)"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line of train.py; returns the exit status."""
    parser = argparse.ArgumentParser("train.py")
    add_arguments(parser)
    args, fields = parser.parse_known_args(arguments)
    args.fields, args.program = fields, "train.py"
    return run(args)


def run(args: argparse.Namespace) -> int:
    """Trains, then writes the report; a report that fails leaves the run as done as it is."""
    program = getattr(args, "program", "slimvit train")
    fields = list(args.fields)
    if args.profile is not None:
        fields.append(f"--config.profile.steps={args.profile}")
    warnings.filterwarnings("ignore", category=DeprecationWarning)

    from slimvit_jax import training

    try:
        with hints_for("config"):
            config = training.load_config(args.config, training.parse_overrides(fields))
            result = training.run(config, args.workdir)
        if config.report.enabled:
            with reported(program, args.workdir):
                from slimvit_jax.reports.report import write_report

                write_report(result.workdir, result.config, result)
    except training.NotFinite as error:
        status, message = 1, str(error)
    except SlimError as error:
        status, message = 2, " ".join(str(error).split())
    except training.Stopped as stop:
        status, message = 128 + (stop.signal or signal.SIGTERM), str(stop)
    except MemoryError as error:
        status, message = 1, f"out of memory: {error}"
    except OSError as error:  # a full disk, a folder that is gone
        status, message = 1, str(error)
    except KeyboardInterrupt:
        return 130
    else:
        return 0
    print(f"{program}: {message}", file=sys.stderr)
    return status


@contextlib.contextmanager
def reported(program: str, workdir: str) -> Iterator[None]:
    """Says what went wrong with the report, and how to have it: weights, metrics and stages are there already."""
    try:
        yield
    except Exception as error:
        why = " ".join(str(error).split()) or type(error).__name__
        kind = "" if isinstance(error, (SlimError, OSError)) else f"{type(error).__name__}: "
        said = f"the run is done, but its report failed ({kind}{why})"
        print(f"{program}: {said}; slimvit report --workdir {workdir} writes it anew", file=sys.stderr)
