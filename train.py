"""Trains by a config, stage after stage, and writes the report; `slimvit train` is the same.

    python train.py --config=configs/digits.py --workdir=runs/digits [--config.any.field=value ...] [--profile]

The same command goes on where it stopped. Exit status: 0 done; 1 stopped by a loss that is not finite or a full disk; 2
bad input; 143 stopped by SIGTERM (130 by Ctrl-C), everything saved.
"""

import sys

from slimvit_jax.cli.train import main
from slimvit_jax.huge_pages import restart_with_huge_pages

if __name__ == "__main__":
    restart_with_huge_pages()
    sys.exit(main())
