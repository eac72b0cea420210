"""What an option may be, said once: in the annotation of its field.

    temperature: Positive = 1.5
    token_loss: Literal["mse", "kl"] = "mse"
    keep_rate: Share | tuple[Share, ...] = 0.7

`kinds_of` reads the annotations of a class, and `check` the values given, when a method or backbone is made. What is
given in Python must be of the type: "false" is no bool and 8.0 no whole number. NumPy's numbers and small arrays count
as what they hold, lists as tuples. A `Text`, a word of a command line, is read as what its option takes.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import math
import types
import typing
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Annotated, Any, Literal

import numpy as np

from slimvit_jax.errors import SlimError, unknown


class Text(str):
    """A word of a command line: "false" is False where a bool is due, "4,7" two numbers where a tuple is."""


#: What reading a value that is no value of a kind may raise.
REFUSALS = (ValueError, TypeError, OverflowError)


@dataclasses.dataclass(frozen=True)
class Kind:
    """What values are fine.

    Attributes:
      says: completes "must ...".
      read: a value to what is stored; raises ValueError for any other value.
      choices: the values there are, where they can be listed.
    """

    says: str
    read: Callable[[Any], Any]
    choices: tuple[Any, ...] = ()

    def parse(self, text: str) -> Any:
        """The value that `text` spells: the first reading of the word that is of this kind.

        Raises:
          ValueError: there is none.
        """
        for candidate in _readings(text):
            try:
                return self.read(candidate)
            except REFUSALS:
                continue
        raise ValueError(self.says)

    def value(self, name: str, given: Any) -> Any:
        """What is stored for the option `name`.

        Raises:
          SlimError: for a value that is not of this kind; names option, value and what it may be.
        """
        try:
            return self.parse(given) if isinstance(given, Text) else self.read(_plain(given))
        except REFUSALS:
            if self.choices:
                raise unknown(name, str(given) if isinstance(given, str) else given, self.choices) from None
            raise SlimError(f"{name}={shown(given)} must {self.says}") from None


@dataclasses.dataclass(frozen=True)
class Range:
    """Bounds of a number, for `Annotated[int, Range(least=1)]`; `above` and `below` are not in it themselves."""

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None

    def __contains__(self, value: float) -> bool:
        return (
            (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def narrow(self, kind: Kind) -> Kind:
        """The numbers of `kind` in this range."""

        def read(value: Any) -> Any:
            number = kind.read(value)
            if number not in self:
                raise ValueError(number)
            return number

        return Kind(self._says(kind.says), read)

    def _says(self, number: str) -> str:
        low, high = (self.above if self.least is None else self.least), (self.below if self.most is None else self.most)
        if low is not None and high is not None:
            interval = f"{'(' if self.least is None else '['}{low}, {high}{')' if self.most is None else ']'}"
            return f"lie in {interval}" if number.startswith("be a finite") else f"{number} in {low}..{high}"
        if self.above == 0 and high is None:
            return number.replace("finite", "positive")
        bounds = {"least": "of at least", "most": "of at most", "above": "above", "below": "below"}
        limits = [f"{word} {getattr(self, name)}" for name, word in bounds.items() if getattr(self, name) is not None]
        return " ".join([number, *limits])


#: Numbers by the range they lie in.
Positive = Annotated[float, Range(above=0)]
NotNegative = Annotated[float, Range(least=0)]
Fraction = Annotated[float, Range(least=0, most=1)]
#: Of the tokens kept: (0, 1].
Share = Annotated[float, Range(above=0, most=1)]
#: Of what is dropped at random: [0, 1).
DropRate = Annotated[float, Range(least=0, below=1)]
Count = Annotated[int, Range(least=1)]
Natural = Annotated[int, Range(least=0)]
#: What jax.random.key and NumPy take on every platform.
Seed = Annotated[int, Range(least=0, most=2**31 - 1)]


def _read_int(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ValueError(value)
    return int(value)


def _instance(cls: type) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if not isinstance(value, cls):
            raise ValueError(value)
        return value

    return read


def _read_float(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(value)
    try:
        number = float(value)
    except OverflowError:
        raise ValueError(value) from None
    if not math.isfinite(number):
        raise ValueError(value)
    return number


ANYTHING = Kind("be anything", lambda value: tuple(value) if isinstance(value, list) else value)

_PLAIN: dict[Any, Kind] = {
    Any: ANYTHING,
    bool: Kind("be True or False", _instance(bool)),
    int: Kind("be a whole number", _read_int),
    float: Kind("be a finite number", _read_float),
    str: Kind("be text", lambda value: str(_instance(str)(value))),
    None: Kind("be None", _instance(type(None))),
}
_PLAIN[type(None)] = _PLAIN[None]


def kind_of(annotation: Any) -> Kind:
    """The kind that an annotation means: bool, int, float (finite), str, None, a class, Literal, a union, a tuple.

    `Annotated[T, ...]` narrows T by a `Range`, or is the `Kind` in it.
    """
    return _kind_of(annotation)


@functools.cache
def _kind_of(annotation: Any) -> Kind:
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        kind = next((extra for extra in arguments[1:] if isinstance(extra, Kind)), None) or kind_of(arguments[0])
        for extra in arguments[1:]:
            kind = extra.narrow(kind) if isinstance(extra, Range) else kind
        return kind
    if origin is Literal:
        return one_of(arguments)
    if origin in (typing.Union, types.UnionType):
        return _either(tuple(kind_of(argument) for argument in arguments))
    if origin is tuple:
        if arguments[1:] == (Ellipsis,):
            return several(kind_of(arguments[0]))
        return _fixed(tuple(kind_of(argument) for argument in arguments))
    cls = origin or annotation
    if not isinstance(cls, type):
        raise TypeError(f"an option cannot be annotated {annotation!r}")
    return Kind(f"be of type {cls.__name__}", _instance(cls))


def one_of(choices: tuple[Any, ...]) -> Kind:
    """These values and no others."""

    def read(value: Any) -> Any:
        for choice in choices:
            if type(value) is type(choice) and value == choice:
                return choice
        raise ValueError(value)

    return Kind(f"be one of {', '.join(map(repr, choices))}", read, choices)


def several(kind: Kind) -> Kind:
    """A tuple of any length of values of a kind."""

    def read(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, (tuple, list)):
            raise ValueError(value)
        return tuple(kind.read(entry) for entry in value)

    return Kind(f"be a tuple, each entry of which must {kind.says}", read)


def _fixed(kinds: tuple[Kind, ...]) -> Kind:
    def read(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, (tuple, list)) or len(value) != len(kinds):
            raise ValueError(value)
        return tuple(kind.read(entry) for kind, entry in zip(kinds, value, strict=True))

    entries = ", ".join(dict.fromkeys(kind.says for kind in kinds))
    size = "pair" if len(kinds) == 2 else f"tuple of {len(kinds)}"
    return Kind(f"be a {size}, each entry of which must {entries}", read)


def _either(kinds: tuple[Kind, ...]) -> Kind:
    def read(value: Any) -> Any:
        for kind in kinds:
            try:
                return kind.read(value)
            except ValueError:
                continue
        raise ValueError(value)

    says = dict.fromkeys(sorted((kind.says for kind in kinds), key=lambda said: said != "be None"))
    listed = [kind.choices or (None,) * (kind is _PLAIN[None]) for kind in kinds]
    choices = tuple(choice for own in listed for choice in own) if all(listed) else ()
    lists = {said: several(Kind(said, read)).says for said in says}
    return Kind(" or ".join("be a tuple of such" if said in lists.values() else said for said in says), read, choices)


def _read_pair(value: Any) -> tuple[int, int]:
    both = (value, value) if not isinstance(value, (tuple, list)) else value
    height, width = kind_of(tuple[Count, Count]).read(both)
    return height, width


#: (height, width) in whole numbers of at least 1; one number stands for both.
Pair = Annotated[tuple[int, int], Kind("be a whole number of at least 1 or (height, width)", _read_pair)]


def one_or_several(entry: Any) -> Kind:
    """A value of the kind that `entry` annotates, or a tuple of them; for `Annotated[tuple[int, ...], ...]`."""
    return kind_of(entry | tuple[entry, ...])


#: Fields of a Flax module, or of ours, that are no options.
BINDING = frozenset({"geometry", "slim", "preprocess", "class_names", "parent", "name"})


def kinds_of(cls: Any) -> Mapping[str, Kind]:
    """Option to kind, of the dataclass fields of a method or backbone; what binds it to others is no option."""
    return _kinds_of(cls)


@functools.cache
def _kinds_of(cls: Any) -> Mapping[str, Kind]:
    try:
        hints = typing.get_type_hints(cls, include_extras=True)
        options = [field.name for field in dataclasses.fields(cls) if field.name not in BINDING]
        return types.MappingProxyType({option: kind_of(hints[option]) for option in options})
    except (NameError, TypeError) as error:
        raise SlimError(f"{cls.__name__}: the annotation of an option cannot be read: {error}") from None


def check(kinds: Mapping[str, Kind], values: Mapping[str, Any]) -> dict[str, Any]:
    """The values as they are stored; those without a kind are left as they are.

    Raises:
      SlimError: for the first that is not what its option takes.
    """
    return {name: kinds[name].value(name, value) if name in kinds else value for name, value in values.items()}


def _plain(value: Any) -> Any:
    """NumPy's numbers and arrays as Python's, also inside of tuples."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if type(value) in (tuple, list):
        return type(value)(map(_plain, value))
    return value


def _readings(text: str) -> list[Any]:
    """What a word can mean, the likeliest first."""
    found: list[Any] = []
    words = {"true": True, "false": False, "none": None}
    found += [words[text.lower()]] if text.lower() in words else []
    try:
        literal = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        pass
    else:
        found += [literal, (literal,)]
    found.append(str(text))
    parts = [part.strip() for part in text.split(",")] if text.strip() else []
    found.append(tuple(_readings(part)[0] if "," in text else part for part in parts))
    return found


def shown(value: Any) -> str:
    """`repr` in one line of reasonable length."""
    text = " ".join(repr(str(value) if isinstance(value, Text) else value).split())
    return text if len(text) <= 200 else f"{text[:200]}..."
