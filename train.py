"""Trains by a config, stage after stage, and writes the report.

    python train.py --config=configs/digits.py --workdir=runs/digits [--config.any.field=value ...] [--profile]

The same command goes on where it stopped. Exit status: 0 done; 1 stopped by a loss that is not finite or a full disk; 2
bad input; 143 stopped by SIGTERM (130 by Ctrl-C), everything saved.
"""

from __future__ import annotations

import argparse
import importlib.util
import signal
import sys
import warnings
from collections.abc import Sequence

from slimvit_jax.huge_pages import restart_with_huge_pages


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser("train.py", allow_abbrev=False, epilog="--config.FIELD=VALUE sets a config field")
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE",
        help="a Python file with get_config(), or the NAME of configs/NAME.py",
    )
    parser.add_argument("--workdir", required=True, metavar="DIR", help="where the run lives; made if missing")
    parser.add_argument(
        "--profile", nargs="?", const="5", metavar="STEPS", help="trace so many steps of each stage (5)"
    )
    known, rest = parser.parse_known_args(arguments)
    if known.profile is not None:
        rest.append(f"--config.profile.steps={known.profile}")
    warnings.filterwarnings("ignore", category=DeprecationWarning)

    from slimvit_jax import training
    from slimvit_jax.errors import SlimError
    from slimvit_jax.text import hints_for

    try:
        config = training.load_config(known.config, training.parse_overrides(rest))
        with hints_for("config"):
            result = training.run(config, known.workdir)
        if config.report.enabled and importlib.util.find_spec("slimvit_jax.analysis.report"):
            from slimvit_jax.analysis.report import write_report

            write_report(result.workdir, config, result)
    except training.NotFinite as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 1
    except SlimError as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    except training.Stopped as stop:
        print(f"train.py: {stop}", file=sys.stderr)
        return 128 + (stop.signal or signal.SIGTERM)
    except MemoryError as error:
        print(f"train.py: out of memory: {error}", file=sys.stderr)
        return 1
    except OSError as error:  # a full disk, a folder that is gone
        print(f"train.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    restart_with_huge_pages()
    sys.exit(main())
