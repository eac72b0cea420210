"""Words for people: names that are data made printable, and options spelled the way the reader has to type them."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any, Literal

Reader = Literal["python", "flags", "config"]
_READER: contextvars.ContextVar[Reader] = contextvars.ContextVar("reader", default="python")


def printable(name: object) -> str:
    r"""The text with everything a terminal or a font cannot show written as an escape; the rest as it is.

    File and class names are data: one may hold bytes that are not UTF-8 (Python has them as lone surrogates), control
    characters, or a line break.

    >>> printable("caf\udce9"), printable("two\nlines"), printable("a$_{b$ [bold]")
    ('caf\\xe9', 'two\\nlines', 'a$_{b$ [bold]')
    """
    return "".join(c if c.isprintable() else _escaped(c) for c in str(name))


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is no UTF-8, as os.fsdecode has it
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


#: Whose option: of the loading of weights, the model, its method, or the data.
Owner = Literal["weights", "model", "method", "data"]
_GROUP: dict[Owner, str] = {"weights": "init", "model": "model", "method": "method", "data": "data"}
_FLAG: dict[Owner, str] = {"model": "--set", "method": "--set", "data": "--data-option"}


@contextlib.contextmanager
def hints_for(reader: Reader) -> Iterator[None]:
    """While entered, `option` spells for somebody who types flags, fields of a config, or Python."""
    token = _READER.set(reader)
    try:
        yield
    finally:
        _READER.reset(token)


def option(owner: Owner, name: str, value: Any) -> str:
    """An option with a value, as the reader has to type it: what hints in errors are made of.

    >>> option("weights", "init_missing", ("head",))
    "init_missing=('head',)"
    >>> with hints_for("flags"):
    ...     option("weights", "init_missing", ("head", "norm")), option("weights", "resample_pos_embed", True)
    ('--init-missing=head --init-missing=norm', '--resample-pos-embed')
    >>> with hints_for("flags"):
    ...     option("model", "num_classes", 3), option("data", "allow_missing_classes", True)
    ('--set num_classes=3', '--data-option allow_missing_classes=True')
    >>> with hints_for("config"):
    ...     option("weights", "init_missing", ("head",))
    "--config.init.options.init_missing=('head',)"
    """
    reader = _READER.get()
    if reader == "config":
        return f"--config.{_GROUP[owner]}.options.{name}={value!r}"
    if reader == "python":
        return f"{name}={value!r}"
    if owner in _FLAG:
        return f"{_FLAG[owner]} {name}={value}"
    flag = f"--{name.replace('_', '-')}"
    values = value if isinstance(value, (tuple, list)) else (value,)
    return " ".join(flag if entry is True else f"{flag}={entry}" for entry in values)


def choose_method(name: str = "NAME") -> str:
    """The choice of a method, as the reader has to type it."""
    spelled = {"flags": f"--method {name}", "config": f"--config.method.name={name}"}
    return spelled.get(_READER.get(), f"method={name}")
