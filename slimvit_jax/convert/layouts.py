"""From what a file or a training script holds to one flat state dict: wrappers, copies, prefixes, others' names."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

from slimvit_jax.arrays import as_numpy
from slimvit_jax.convert import google, huggingface
from slimvit_jax.errors import SlimError, unknown

logger = logging.getLogger(__name__)

#: Entries of checkpoints: the average of the weights over training, then the weights themselves.
AVERAGES = ("model_ema", "state_dict_ema", "ema_state_dict", "ema_model", "ema", "teacher")
PLAIN = ("state_dict", "model", "model_state_dict", "model_state", "module", "network", "net", "weights", "student")
#: Leading parts of names that say nothing about the model, besides those.
_PREFIXES = (*AVERAGES, *PLAIN, "_orig_mod", "backbone", "encoder", "trunk")
#: What wrappers of torch put between a module and its part.
_INSIDE = re.compile(r"(?:(?<=\.)|^)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_HUB_ONLY = ("register_tokens", "mask_token")  # of DINOv2's own files, beside timm's names
_NO_BIAS = re.compile(r"blocks\.\d+\.attn\.[qv]_bias")
_CHUNK = re.compile(r"blocks\.\d+\.(\d+\..+)")


def unwrap(content: Any, checkpoint_key: str | None = None) -> dict[str, Any]:
    """The state dict in a checkpoint, under timm's names where it has another known layout.

    Takes off wrapping entries ("state_dict", "model", ...), prefixes that all names share ("module.", "_orig_mod.")
    and the names of Google's and Hugging Face's layouts. Where the weights and their average over training are both
    there, it takes the average, as timm does, and logs that.

    Args:
      content: what torch.load gave, or arrays by name.
      checkpoint_key: the entry to take instead.

    Raises:
      SlimError: `content` is no mapping, or has no such entry.
    """
    state, left = _unwrap(content, checkpoint_key)
    if left:
        raise unknown("checkpoint_key", left, state)
    return state


def fit(content: Any, expected: Collection[str], checkpoint_key: str | None = None) -> dict[str, Any]:
    """`unwrap` with the names of a model at hand: any prefix is found, and of several copies one is taken.

    Names outside of the prefix stay as they are, for the caller to report.

    Args:
      content, checkpoint_key: as of `unwrap`; the key may also be a prefix.
      expected: state-dict names of the model.

    Raises:
      SlimError: as `unwrap`; several copies of the weights, and no telling which is wanted.
    """
    state, key = _unwrap(content, checkpoint_key)
    state = _without_prefix(state, {*expected, *_HUB_ONLY}, key)
    state.pop("n_averaged", None)  # the counter of torch's AveragedModel
    if "mask_token" in state and "mask_token" not in expected:
        del state["mask_token"]  # masked image modelling alone reads it
    if "register_tokens" in state:
        state["reg_token"] = state.pop("register_tokens")
        if "pos_embed" in state and "cls_token" in state:
            huggingface.fold_class_position(state)
    if not any(_NO_BIAS.fullmatch(name) for name in expected):  # DINOv3's are zero, and some models leave them out
        biases = {name for name in state if _NO_BIAS.fullmatch(name) and not as_numpy(name, state[name]).any()}
        state = {name: value for name, value in state.items() if name not in biases}
    if any(_CHUNK.fullmatch(name) for name in state) and not any(_CHUNK.fullmatch(name) for name in expected):
        state = {_CHUNK.sub(r"blocks.\1", name): value for name, value in state.items()}
    return state


def _unwrap(content: Any, key: str | None) -> tuple[dict[str, Any], str | None]:
    """The state dict, and `key` if no entry has that name."""
    while True:
        if not isinstance(content, Mapping):
            advice = "; give its state_dict()" if callable(getattr(content, "state_dict", None)) else ""
            raise SlimError(f"a state dict is a mapping of names to arrays, not {type(content).__name__}{advice}")
        entries = [name for name in (*AVERAGES, *PLAIN) if _holds_arrays(content.get(name))]
        if key is not None and isinstance(content.get(key), Mapping):
            content, key = content[key], None
        elif key is not None and len(entries) > 1:
            raise unknown("checkpoint_key", key, entries)
        elif entries:
            content = content[_choose(entries)]
        else:
            break
    state = {_INSIDE.sub("", str(name)): value for name, value in content.items()}
    while key is None and (shared := _shared_prefix(state)):
        state = {name.removeprefix(shared): value for name, value in state.items()}
    if google.is_google(state):
        state = google.to_timm(state)
    elif huggingface.is_huggingface(state):
        state = huggingface.to_timm(state)
    return state, key


def is_array(value: Any) -> bool:
    """Whether it is an array of some library."""
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _holds_arrays(value: Any) -> bool:
    return isinstance(value, Mapping) and any(is_array(v) or _holds_arrays(v) for v in value.values())


def _shared_prefix(state: Mapping[str, Any]) -> str:
    firsts = {name.partition(".")[0] if "." in name else "" for name, value in state.items() if is_array(value)}
    only = firsts.pop() if len(firsts) == 1 else ""
    return f"{only}." if only in _PREFIXES else ""


def _without_prefix(state: dict[str, Any], expected: Collection[str], key: str | None) -> dict[str, Any]:
    """The names without what stands before the model's own."""
    matches: Counter[str] = Counter()
    for name in state:
        parts = name.split(".")
        matches.update(".".join(parts[:i]) for i in range(len(parts)) if ".".join(parts[i:]) in expected)
    copies = [prefix for prefix, count in matches.items() if 2 * count > len(expected)]
    if key is not None:
        chosen = [prefix for prefix in copies if prefix == key or key in prefix.split(".") or key == f"{prefix}."]
        if len(chosen) != 1:
            raise unknown("checkpoint_key", key, copies)
    else:
        chosen = [_choose(copies)] if copies else [""]
    taken = f"{chosen[0]}." if chosen[0] else ""
    others = [f"{prefix}." for prefix in copies if prefix and prefix != chosen[0]]
    found: dict[str, Any] = {}
    for name, value in state.items():
        if name.startswith(taken) and not any(name.startswith(o) and len(o) > len(taken) for o in others):
            found[name.removeprefix(taken)] = value
        elif not name.startswith(tuple(others)) and not ("" in copies and name in expected):
            found.setdefault(name, value)
    return found


def _choose(copies: list[str]) -> str:
    """Of several copies of the weights the average; says so."""
    averages = [copy for copy in copies if any(part in AVERAGES for part in copy.split("."))]
    plain = [copy for copy in copies if copy not in averages]
    if len(averages) > 1 or (len(plain) > 1 and not averages):
        names = ", ".join(map(repr, copies))
        raise SlimError(f"{len(copies)} sets of weights: {names}; checkpoint_key={copies[0]!r} takes the first")
    if averages and plain:
        other = f"checkpoint_key={plain[0]!r} takes the other" if plain[0] else "the other ones have no prefix"
        logger.warning(
            "the checkpoint holds %r and %r: taking %r, the average over training; %s",
            plain[0],
            averages[0],
            averages[0],
            other,
        )
    return (averages or plain)[0]
