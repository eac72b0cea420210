"""Torch state dicts to variables and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from slimvit_jax.arrays import as_numpy
from slimvit_jax.backbones.base import Backbone
from slimvit_jax.convert import describe, layouts, rules
from slimvit_jax.convert.resample import resample_pos_embed as resample
from slimvit_jax.errors import SlimError, unknown
from slimvit_jax.fresh import note
from slimvit_jax.keywords import checked
from slimvit_jax.options import Count
from slimvit_jax.text import option

SHOWN = 5  # names per kind of problem in an error message


@checked
def from_torch(
    model: Backbone,
    state_dict: Mapping[str, Any],
    *,
    init_missing: str | Iterable[str] = (),
    ignore: str | Iterable[str] = (),
    resample_pos_embed: bool | tuple[Count, Count] = False,
    antialias: bool = True,
    checkpoint_key: str | None = None,
    inference: bool = False,
    rng: jax.Array | None = None,
) -> dict[str, Any]:
    """A torch state dict as variables for `model.apply`.

    Args:
      model: from create_model; decides what is expected.
      state_dict: name -> numpy array or torch tensor, in torch's layout; the names are timm's, those of a method's
        release, of DINOv2's hub files, of Hugging Face's transformers or of Google's .npz files. Wrapping entries
        ("state_dict", "model") and prefixes ("module.", "_orig_mod.", "backbone.") are taken off. Any floating type;
        the result has the model's (float32).
      init_missing: name prefixes ("head", "life_predictor"). What is missing under them, or there with another shape,
        is initialised fresh; what fits is used. "method" stands for all that the slimming method owns.
      ignore: name prefixes; what the model has no place for under them is left out.
      resample_pos_embed: True resamples a position embedding of another grid, taken to be square, to the model's; a
        pair (rows, columns) says which grid it comes from.
      antialias: how: True as timm resamples; False as transformers does (save for Dinov2 with registers), for weights
        that were trained or tuned there.
      checkpoint_key: which entry, or which names by their prefix, of a checkpoint that holds several sets of weights.
        None takes the average over training where there is one ("model_ema", "teacher"), as timm does, and logs that.
      inference: leave out what only training reads (SiT's recovery modules, auxiliary heads), which then need not be
        there; the variables serve inference alone.
      rng: random key of what `init_missing` makes; key 0 if None.

    Returns:
      {"params": ...} and, with batch normalisation, {"batch_stats": ...}: jax arrays.

    Raises:
      SlimError: names are missing, left over or of another shape (all in one error, with both shapes), a value is no
        floating array or not finite, or a prefix of `init_missing` names nothing of the model.
    """
    everything, want = rules.expected(model), rules.expected(model, inference)
    state_dict = layouts.fit(state_dict, everything, checkpoint_key)
    if hasattr(model, "from_official"):
        state_dict = model.from_official(state_dict)
    fresh_prefixes, ignored_prefixes = _prefixes(init_missing), _prefixes(ignore)
    if "method" in fresh_prefixes:
        owned = dict.fromkeys(name.split(".")[0] for name, leaf in everything.items() if leaf.path[1] == "slim")
        fresh_prefixes = (*(prefix for prefix in fresh_prefixes if prefix != "method"), *owned)
    for prefix in fresh_prefixes:
        if not any(_under(name, (prefix,)) for name in everything):
            raise unknown("prefix in init_missing", prefix, {name.split(".")[0] for name in everything})

    unread, counters = everything.keys() - want.keys(), set(rules.counters(everything))
    given: dict[str, Any] = {}
    for name, value in state_dict.items():
        if layouts.is_array(value):
            if name not in counters:
                given[name] = value
        elif not _under(name, ignored_prefixes):
            raise SlimError(
                f"state dict: {name} is a {type(value).__name__}, not an array;"
                f" {option('weights', 'ignore', (name,))} leaves it out"
            )
    problems: list[str] = []
    if resample_pos_embed is not False and "pos_embed" in given and "pos_embed" in want:
        source = None if resample_pos_embed is True else resample_pos_embed  # None: a square one
        try:
            given["pos_embed"] = _regrid(model, want["pos_embed"], given["pos_embed"], source, antialias)
        except SlimError as error:
            problems.append(str(error))
            given.pop("pos_embed")
            want = {name: leaf for name, leaf in want.items() if name != "pos_embed"}

    fresh, missing, misfits = set(), [], []
    for name, leaf in want.items():
        if name in given and tuple(given[name].shape) == leaf.torch_shape:
            continue
        if _under(name, fresh_prefixes):
            fresh.add(name)
        elif name in given:
            misfits.append(name)
        else:
            missing.append(name)
    unexpected = [n for n in given if n not in want and n not in unread and not _under(n, ignored_prefixes)]
    if problems or missing or misfits or unexpected:
        raise SlimError(_report(want, given, problems, missing, misfits, unexpected))

    flat = _initialise(model, [want[name].path for name in fresh], rng) if fresh else {}
    note([leaf for path, leaf in flat.items() if path[:2] == ("params", "slim")])
    broken: list[str] = []
    for name, leaf in want.items():
        if name not in fresh:
            with np.errstate(over="ignore"):
                array = as_numpy(name, given[name]).astype(leaf.dtype, copy=False)
            broken += [] if np.isfinite(array).all() else [name]
            flat[leaf.path] = jnp.array(rules.to_flax_layout(leaf, array))  # a copy: never tied to the caller's memory
    if broken:
        raise SlimError(f"state dict: {len(broken)} hold values that are no finite numbers ({_some(broken)})")
    return rules.unflatten({leaf.path: flat[leaf.path] for leaf in want.values()})


@checked
def to_torch(model: Backbone, variables: Mapping[str, Any], *, inference: bool = False) -> dict[str, np.ndarray]:
    """The exact inverse of `from_torch`: every variable under its state-dict name, in torch's layout, its own dtype.

    Batch normalisation's counter num_batches_tracked, which torch expects and nothing here uses, is an int64 0.
    `inference` leaves out what only training reads.

    Raises:
      SlimError: the variables are not those of `model`; names and shapes as in `from_torch`.
    """
    want = rules.expected(model, inference)
    unread = rules.expected(model).keys() - want.keys()
    have = {name: leaf for name, leaf in rules.leaves(variables).items() if name not in unread}
    missing = [name for name in want if name not in have]
    misfits = [name for name in want if name in have and have[name].shape != want[name].shape]
    unexpected = [name for name in have if name not in want]
    if missing or misfits or unexpected:
        shapes = {name: np.broadcast_to(np.float32(0), leaf.torch_shape) for name, leaf in have.items()}
        raise SlimError(_report(want, shapes, [], missing, misfits, unexpected, what="the variables", hints=False))
    for name, leaf in have.items():
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise SlimError(f"variables: {name} holds {leaf.dtype}, not floating numbers")
    flat = jax.device_get(rules.flatten(variables))
    state = {name: rules.to_torch_layout(leaf, np.asarray(flat[leaf.path])) for name, leaf in have.items()}
    state |= {name: np.zeros((), np.int64) for name in rules.counters(have)}
    return model.to_official(state) if hasattr(model, "to_official") else state


def _regrid(model: Any, leaf: rules.Leaf, value: Any, source: tuple[int, int] | None, antialias: bool) -> Any:
    """The position embedding on the model's grid; unchanged if it has the right length and no source grid is given."""
    shape, grid = tuple(value.shape), tuple(model.geometry.grid)
    if len(shape) != 3 or shape[::2] != leaf.shape[::2]:
        return value  # of another width: reported as a wrong shape
    if source == grid or (source is None and shape == leaf.shape):
        return value
    prefix = leaf.shape[1] - model.geometry.num_patches
    return resample(as_numpy("pos_embed", value), grid, prefix, source, antialias)


def _initialise(model: Any, paths: list[tuple[str, ...]], rng: jax.Array | None) -> dict[tuple[str, ...], jax.Array]:
    """Fresh values of the variables at `paths`, the ones model.init makes from this key; only they are computed."""

    def chosen(key: jax.Array) -> list[jax.Array]:
        spec = rules.dummy_images(model)
        flat = rules.flatten(model.init(key, jnp.zeros(spec.shape, spec.dtype)))
        return [flat[path] for path in paths]

    key = jax.random.key(0) if rng is None else rng
    return dict(zip(paths, jax.jit(chosen)(key), strict=True))


def _prefixes(names: str | Iterable[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def _under(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def _some(items: list[str]) -> str:
    more = f", and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return ", ".join(items[:SHOWN]) + more


def _tops(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.split(".")[0] for name in names))


def _report(
    want: Mapping[str, rules.Leaf],
    given: Mapping[str, Any],
    problems: list[str],
    missing: list[str],
    misfits: list[str],
    unexpected: list[str],
    what: str = "the state dict",
    hints: bool = True,
) -> str:
    """The one line of an error: what is wrong, both shapes, the option that allows it, what the weights look like."""
    parts, notes, fresh = list(problems), [], []
    if missing:
        parts.append(f"{len(missing)} missing ({_some(missing)})")
        fresh += [name for name in missing if want[name].path[1] == "slim" or _under(name, ("head", "head_dist"))]
    if unexpected:
        parts.append(f"{len(unexpected)} unexpected ({_some(unexpected)})")
        if not missing and not misfits:
            notes.append(f"{option('weights', 'ignore', _tops(unexpected))} leaves them out")
    if misfits:
        shapes = [f"{name} is {tuple(given[name].shape)}, the model has {want[name].torch_shape}" for name in misfits]
        parts.append(f"{len(misfits)} of another shape ({_some(shapes)})")
        fresh += [name for name in misfits if _under(name, ("head", "head_dist"))]
        if "pos_embed" in misfits:
            notes.append(f"{option('weights', 'resample_pos_embed', True)} resamples the position embedding")
    if fresh:
        notes.append(f"{option('weights', 'init_missing', _tops(fresh))} initialises {', '.join(_tops(fresh))} anew")
    line = f"{what} does not fit the model: {'; '.join(parts)}".replace("variables does", "variables do")
    theirs = describe.facts({name: tuple(value.shape) for name, value in given.items()})
    ours = describe.facts({name: leaf.torch_shape for name, leaf in want.items()})
    if theirs != ours:
        return f"{line}. It looks like {describe.phrase(theirs)}; the model is {describe.phrase(ours)}"
    return f"{line}. {'; '.join(notes)}" if hints and notes else line
