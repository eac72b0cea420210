"""What methods and backbones have in common as Flax modules: checked options, and methods that are plain Python."""

from __future__ import annotations

import types
from typing import Any, ClassVar

import flax.linen as nn

from slimvit_jax import options


class Checked(nn.Module, kw_only=True):
    """A module whose fields are options: each is of the kind that its annotation says (see `options`), also in a clone.

    Flax wraps every method of a module: it then needs a module that is set up, and shows up in `tabulate` and
    interceptors. Here only what computes with parameters is wrapped, `PASSES` and what is compact; the rest (plans,
    checks, losses) is plain Python that may run at any time.

    Attributes:
      PASSES: names of the methods that Flax wraps, beside `setup`.
    """

    PASSES: ClassVar[frozenset[str]] = frozenset({"__call__"})

    def __init_subclass__(cls, **arguments: Any) -> None:
        for name, value in vars(cls).items():
            wrapped = name in cls.PASSES or name == "setup" or hasattr(value, "compact")
            if isinstance(value, types.FunctionType) and not name.startswith("__") and not wrapped:
                nn.nowrap(value)
        super().__init_subclass__(**arguments)

    def __post_init__(self) -> None:
        kinds = options.kinds_of(type(self))
        self._set(options.check(kinds, {name: getattr(self, name) for name in kinds}))
        self.check_all()
        super().__post_init__()

    @nn.nowrap
    def check_all(self) -> None:
        """Raises SlimError for options that do not go together; each is of its kind already."""

    @nn.nowrap
    def _set(self, values: dict[str, Any]) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @nn.nowrap
    def options(self) -> dict[str, Any]:
        """The options as a plain dict, without what binds the module to others."""
        return {name: getattr(self, name) for name in options.kinds_of(type(self))}
