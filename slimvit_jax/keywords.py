"""Keywords of functions, held to their annotations as options are."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

from slimvit_jax.errors import unknown
from slimvit_jax.options import Kind, check, kind_of

P = ParamSpec("P")
R = TypeVar("R")


@functools.cache
def keywords_of(function: Callable[..., Any]) -> Mapping[str, Kind]:
    """Keyword to kind, of the parameters of a function that have defaults."""
    hints = typing.get_type_hints(function, include_extras=True)
    parameters = inspect.signature(function).parameters.values()
    return {p.name: kind_of(hints[p.name]) for p in parameters if p.default is not inspect.Parameter.empty}


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """The function; a keyword that it does not have, or a value that is not as annotated, is a SlimError."""
    names = tuple(inspect.signature(function).parameters)

    @functools.wraps(function)
    def call(*arguments: P.args, **keywords: P.kwargs) -> R:
        for name in keywords:
            if name not in names:
                raise unknown(f"option of {function.__name__}", name, keywords_of(function))
        return function(*arguments, **check(keywords_of(function), keywords))  # type: ignore[arg-type]

    return call
