"""The one exception of the library, and the phrasing of "there is no such thing; here is what there is"."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SlimError(ValueError):
    """Bad input of any kind: one line that names the thing, its value and the choices."""


def first_line(error: BaseException, most: int = 200) -> str:
    """The beginning of what an error of another library says, or its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:most]


def unknown(kind: str, value: object, choices: Iterable[object]) -> SlimError:
    """The error for a value that is not among `choices`; names the nearest choice, if one is near.

    >>> str(unknown("method", "lif", ["life", "evit"]))
    "unknown method 'lif'; did you mean 'life'? choices: evit, life"
    """
    names = sorted(str(choice) for choice in choices)
    near = difflib.get_close_matches(str(value), names, n=1)
    hint = f" did you mean {near[0]!r}?" if near else ""
    return SlimError(f"unknown {kind} {value!r};{hint} choices: {', '.join(names) or 'none'}")
