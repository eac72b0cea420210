"""Functions of the algebra that an exporter may write in the words of its target.

A target's optimiser recognises a layer norm, not the ten operations it is made of. So the functions that matter are
marked as pieces, and whoever traces a model for a target can take their place, within `taken_over` alone. Everywhere
else a piece is the function itself.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

#: (name of the piece, the function itself, its arguments, its keywords) to what the function gives.
Taker = Callable[[str, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
_TAKER: contextvars.ContextVar[Taker | None] = contextvars.ContextVar("taker", default=None)


def piece(function: Callable[P, T]) -> Callable[P, T]:
    """Marks a function of arrays (and of static numbers and words); its name is that of the piece."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        taker = _TAKER.get()
        if taker is None:
            return function(*args, **kwargs)
        result: T = taker(function.__name__, function, args, kwargs)
        return result

    return call


@contextlib.contextmanager
def taken_over(taker: Taker | None) -> Iterator[None]:
    """While entered, pieces are computed by `taker`; by themselves where it is None."""
    token = _TAKER.set(taker)
    try:
        yield
    finally:
        _TAKER.reset(token)
