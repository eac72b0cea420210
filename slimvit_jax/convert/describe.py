"""What a set of weights looks like, judged by names and shapes alone: for error messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slimvit_jax.backbones import BACKBONES
from slimvit_jax.models import NAMED

Shapes = Mapping[str, tuple[int, ...]]


def facts(shapes: Shapes) -> dict[str, Any]:
    """Kind, family and sizes of the model these arrays belong to, as far as they show; {} for none known here."""
    seen = (cls.seen_in(shapes) for cls in reversed(BACKBONES))  # what derives from another comes before it
    return next((found for found in seen if found is not None), {})


def phrase(found: Mapping[str, Any]) -> str:
    """`facts` in words, with up to three named models of those sizes."""
    if not found:
        return "no vision transformer known here"
    rest = ", ".join(f"{key} {value}" for key, value in found.items() if key not in ("kind", "family"))
    sizes = [key for key in ("embed_dim", "depth", "patch_size") if key in found]
    same = [
        name
        for name, model in NAMED.items()
        if model.family == found["family"]
        and model.method is None
        and all(model.kwargs[size] == found[size] for size in sizes)
        and model.kwargs.get("reg_tokens", 0) == found.get("reg_tokens", 0)
    ]
    like = f", as in {', '.join(same[:3])}" if same else ""
    return f"a {found['kind']} with {rest}{like}"
