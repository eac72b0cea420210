"""The named models of all backbones, and where their weights are."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from itertools import accumulate
from types import MappingProxyType

from slimvit_jax.backbones import BACKBONES
from slimvit_jax.errors import SlimError
from slimvit_jax.named import NamedModel

_DENSE: dict[str, NamedModel] = {name: model for cls in BACKBONES for name, model in cls.named().items()}


def _slimmed() -> Iterator[tuple[str, NamedModel]]:
    """SiT on LV-ViT: stages of models/lvvit.py of Sense-X/SiT."""
    for size, dense, blocks in (
        ("t", "t", (1, 1, 1, 11)),
        ("xs", "s", (1, 1, 1, 13)),
        ("s", "s", (9, 3, 2, 2)),
        ("m", "m", (10, 4, 3, 3)),
        ("l", "l", (10, 4, 3, 7)),
    ):
        options = MappingProxyType({"keep_rate": 0.5, "locations": tuple(accumulate(blocks[:-1]))})
        yield f"sit_{size}", dataclasses.replace(_DENSE[f"lvvit_{dense}"], method="sit", method_kwargs=options)


NAMED: Mapping[str, NamedModel] = MappingProxyType(_DENSE | dict(_slimmed()))


def weights_of(source: object) -> str | None:
    """The named model whose published weights "hf-hub:timm/NAME[.TAG]" are; None for other sources."""
    repository = str(source).removeprefix("hf-hub:")
    tagged = repository.removeprefix("timm/")
    name = tagged if tagged in NAMED else tagged.partition(".")[0]  # some names have a tag of their own: ".mae"
    return name if repository != str(source) and repository.startswith("timm/") and name in NAMED else None


def check_weights_of(model: str, source: object, said: str) -> None:
    """Raises SlimError where the published weights `source` are of another named model than `model`.

    Arrays of the same shapes would be taken in silence, and images normalised in the other model's way. A model that
    differs in the size of its images only may start from them.

    Args:
      model: a named model; any other name is not checked.
      source: of `slim.load`.
      said: how the reader gave the source, such as "--weights".
    """
    other = weights_of(source)
    if other is None or model not in NAMED or _essence(other) == _essence(model):
        return
    right = NAMED[model].hub
    give = f"; those of {model!r} are hf-hub:{right}" if right else ""
    raise SlimError(f"{said}={str(source)!r} are weights of {other!r}, not of the model {model!r}{give}")


def _essence(name: str) -> tuple[object, ...]:
    """What two named models must share for one to start from the other's weights."""
    named = NAMED[name]
    kwargs = {key: value for key, value in named.kwargs.items() if key not in ("img_size", "num_classes")}
    return named.family, tuple(sorted(kwargs.items())), named.preprocess.mean, named.preprocess.std


def weights_path(path: str, name: str, field: str) -> str:
    """The weights file or repository of model `name` that a config's field means by `path`.

    "published" is the repository of the weights that timm publishes under that name, so that they follow the model;
    anything else is itself.

    Raises:
      SlimError: nobody has published weights of that name.
    """
    if path != "published":
        return path
    if name not in NAMED or not NAMED[name].hub:
        raise SlimError(
            f"config.{field}='published', but there are no published weights of model {name!r};"
            f" --config.{field}=FILE or hf-hub:OWNER/NAME names others, --config.{field}= stands for none"
        )
    return f"hf-hub:{NAMED[name].hub}"
