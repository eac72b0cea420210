"""Other libraries told to be quiet."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def quiet(*names: str, level: int = logging.CRITICAL) -> Iterator[None]:
    """While entered, the loggers of these names pass on nothing below `level`."""
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(level)
        yield
    finally:
        for logger, own in zip(loggers, before, strict=True):
            logger.setLevel(own)
