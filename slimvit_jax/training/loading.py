"""A config from its file and the command line: `configs/NAME.py` and `--config.FIELD=VALUE`."""

from __future__ import annotations

import importlib.util
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from slimvit_jax.errors import SlimError, unknown
from slimvit_jax.options import Text
from slimvit_jax.training import checks, fields
from slimvit_jax.training.config import is_free, reference, unknown_field, validate

#: Where configs are looked for by name: under the current folder, beside the package in a source tree, and in it where
#: it is installed.
FOLDERS = (Path("configs"), Path(__file__).parents[2] / "configs", Path(__file__).parents[1] / "configs")


def find_config(path: str | Path) -> Path:
    """The file itself, or configs/NAME.py for a plain NAME.

    Raises:
      SlimError: neither is there; names the choices.
    """
    path = Path(path)
    if path.is_file():
        return path
    if path.parent == Path() and not path.suffix:
        found = [folder / f"{path}.py" for folder in FOLDERS if (folder / f"{path}.py").is_file()]
        if found:
            return found[0]
        raise unknown("config", str(path), {file.stem for folder in FOLDERS for file in folder.glob("*.py")})
    near = sorted(p.name for p in path.parent.glob("*.py")) if path.parent.is_dir() else []
    raise SlimError(f"no config file {str(path)!r}; in {str(path.parent)!r}: {', '.join(near) or 'none'}")


def load_config(path: str | Path, overrides: Iterable[tuple[str, str]] = ()) -> ConfigDict:
    """Runs `get_config()` of a Python file, applies (dotted field, text) overrides and validates.

    Args:
      path: the file, or the name of one in configs/ without its ".py".
      overrides: of `parse_overrides`.

    Raises:
      SlimError: no such file, a file that fails, an unknown field, a wrong type or value.
    """
    path = find_config(path)
    if path.suffix != ".py":
        raise SlimError(f"config {str(path)!r} must be a Python file (.py) with get_config()")
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config()
    except SlimError:
        raise
    except (Exception, SystemExit) as error:
        line = next(
            (f.lineno for f in reversed(traceback.extract_tb(error.__traceback__)) if f.filename == str(path)), 0
        )
        where = f"{path}, line {getattr(error, 'lineno', None) or line}"
        raise SlimError(
            f"{where}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        ) from error
    if not isinstance(config, ConfigDict):
        raise SlimError(f"{path}: get_config() returned {type(config).__name__}, not a ConfigDict")
    pairs = list(overrides)
    for field, text in sorted(pairs, key=lambda pair: is_free(pair[0].rpartition(".")[0])):
        override(config, field, text)  # names of models and methods before their options
    return validate(config)


def parse_overrides(arguments: Iterable[str]) -> list[tuple[str, str]]:
    """["--config.a.b=1", "--config.c", "2"] to [("a.b", "1"), ("c", "2")]; anything else is a SlimError."""
    pairs: list[tuple[str, str]] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if not argument.startswith("--config."):
            raise SlimError(
                f"unknown argument {argument!r}; choices: --config=FILE, --workdir=DIR, --config.FIELD=VALUE"
            )
        field, equals, text = argument[len("--config.") :].partition("=")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise SlimError(f"{argument} needs a value: {argument}=VALUE")
            text = rest.pop(0)
        pairs.append((field, text))
    return pairs


def override(config: ConfigDict, field: str, text: str) -> None:
    """Sets one dotted field from its text, read as what the field takes."""
    *parents, last = field.split(".")
    holder: Any = config
    defaults = reference(config)
    path = ""
    for part in parents:
        if not isinstance(holder, ConfigDict) or part not in holder:
            raise unknown_field(f"{path}{part}", defaults if not path else _at(defaults, path[:-1]))
        holder, path = holder[part], f"{path}{part}."
    free = is_free(path[:-1])
    if not isinstance(holder, ConfigDict) or (last not in holder and not free):
        raise unknown_field(field, _at(defaults, path[:-1]))
    if isinstance(holder.get(last), ConfigDict):
        raise SlimError(f"config field {field!r} is a group; set one of its fields: {', '.join(holder[last].keys())}")
    if free:
        kind = checks.kind_in_group(config, path[:-1], last)
    else:
        kind = fields.kind_of_field(_at(defaults, field))
    with holder.ignore_type():
        holder[last] = kind.value(f"config.{field}", Text(text))


def _at(defaults: Any, path: str) -> Any:
    for part in path.split(".") if path else ():
        defaults = defaults[part]
    return defaults
