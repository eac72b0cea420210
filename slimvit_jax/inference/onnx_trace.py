"""A model's inference as a flat list of primitives that a converter has an easy time with."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from slimvit_jax.errors import SlimError
from slimvit_jax.ops import pieces

#: A loop of at most so many rounds is written out.
UNROLLED = 256
#: What is computed from constants alone is computed at export, unless larger than this and than what it is made of.
LARGEST_FOLD = 1 << 16


def traced(function: Callable[..., Any], inputs: Sequence[jax.ShapeDtypeStruct]) -> core.ClosedJaxpr:
    """The function as primitives: `PIECES` (onnx_pieces) whole, calls inlined, loops written out, constants folded.

    Args:
      function: of arrays, to an array or a tuple of arrays.
      inputs: their shapes; dimensions may be symbolic.
    """
    with pieces.taken_over(_as_primitive):
        whole = jax.make_jaxpr(function)(*inputs)
    flat = jax.make_jaxpr(lambda *given: _run(whole.jaxpr, whole.consts, given))(*inputs)
    return _without_unread(flat)


@functools.cache
def primitive(name: str) -> core.Primitive:
    """The primitive of a piece. Its parameters say how to call it: `function`, `tree`, `leaves` (static ones)."""
    made = core.Primitive(f"slimvit.{name}")
    made.multiple_results = True
    made.def_impl(lambda *arrays, **how: jax.tree.leaves(call(how, arrays)))
    made.def_abstract_eval(_abstract)
    return made


def call(how: dict[str, Any], arrays: Sequence[Any], function: Callable[..., Any] | None = None) -> Any:
    """Calls the piece, or `function` in its place, with `arrays` among its static arguments."""
    given = iter(arrays)
    leaves = [next(given) if leaf is _ARRAY else leaf for leaf in how["leaves"]]
    args, kwargs = jax.tree.unflatten(how["tree"], leaves)
    return (function or how["function"])(*args, **kwargs)


class _Array:
    """Stands for an array among static arguments."""

    def __repr__(self) -> str:
        return "array"


_ARRAY = _Array()


def _as_primitive(name: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    leaves, tree = jax.tree.flatten((args, kwargs))
    is_array = [isinstance(leaf, (jax.Array, np.ndarray)) for leaf in leaves]
    arrays = [leaf for leaf, there in zip(leaves, is_array, strict=True) if there]
    static = tuple(_ARRAY if there else leaf for leaf, there in zip(leaves, is_array, strict=True))
    how = {"function": function, "tree": tree, "leaves": static}
    with pieces.taken_over(None):
        # Noted, so that a converter that traces anew in a world of its own does not look inside.
        shapes = jax.eval_shape(lambda *given: jax.tree.leaves(call(how, given)), *arrays)
    out = primitive(name).bind(*arrays, **how, out=tuple((leaf.shape, leaf.dtype) for leaf in shapes))
    return out[0] if len(out) == 1 else tuple(out)


def _abstract(*_: Any, out: tuple[Any, ...], **how: Any) -> list[Any]:
    return [jax.core.ShapedArray(*one) for one in out]


# Simplifying ---------------------------------------------------------------------------------------------------------


def _run(jaxpr: Any, consts: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *arguments], strict=True))

    def read(atom: Any) -> Any:
        if isinstance(atom, core.Literal):
            aval: Any = atom.aval
            return np.asarray(atom.val, aval.dtype)
        return values[atom]

    for eqn in jaxpr.eqns:
        values.update(zip(eqn.outvars, _equation(eqn, [read(atom) for atom in eqn.invars]), strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _equation(eqn: Any, inputs: list[Any]) -> list[Any]:
    inner = next((eqn.params[key] for key in ("jaxpr", "call_jaxpr") if key in eqn.params), None)
    if eqn.primitive.name == "scan" and eqn.params["length"] <= UNROLLED:
        return _scan(eqn.params, inputs)
    if any(isinstance(value, jax.core.Tracer) for value in inputs) or not _static(eqn):
        if (rewritten := _rewritten(eqn, inputs)) is not None:
            return [rewritten]
    if inner is not None and eqn.primitive.name != "scan":  # jit, custom derivatives, remat
        return _run(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), inputs)
    if eqn.primitive.name in ("while", "cond", "scan"):
        raise SlimError(
            "what this model computes has a loop or a branch that depends on the images, or is longer than"
            f" {UNROLLED} rounds; an ONNX file is written without loops: export a .stablehlo"
        )
    bind = functools.partial(eqn.primitive.bind, *inputs, **eqn.params)
    if _foldable(eqn, inputs):
        with jax.ensure_compile_time_eval():
            out = bind()
    else:
        out = bind()
    return list(out) if eqn.primitive.multiple_results else [out]


def _static(eqn: Any) -> bool:
    return all(isinstance(side, int) for var in eqn.outvars for side in var.aval.shape)


def _rewritten(eqn: Any, inputs: list[Any]) -> Any:
    """Primitives of which a graph of any batch makes many nodes, or none, in words of ours; None for all others."""
    name, params = eqn.primitive.name, eqn.params
    shape = eqn.outvars[0].aval.shape
    if sum(not isinstance(side, int) for side in shape) > 1:
        return None
    if name == "reshape" and params["dimensions"] is None:
        return _as_primitive("reshape", jnp.reshape, (inputs[0],), {"shape": shape})
    if name == "broadcast_in_dim":
        axes = params["broadcast_dimensions"]
        return _as_primitive("broadcast", jax.lax.broadcast_in_dim, (inputs[0], shape, axes), {})
    if name == "pad" and all(low >= 0 and high >= 0 and not inside for low, high, inside in params["padding_config"]):
        return _as_primitive("pad", jax.lax.pad, (*inputs, params["padding_config"]), {})
    if name == "gather" and not isinstance(inputs[1], jax.core.Tracer):
        return _one_of(inputs[0], np.asarray(inputs[1]), params)
    return None


def _one_of(x: Any, place: np.ndarray, params: dict[str, Any]) -> Any:
    """`x[:, 3]` as a slice: jax has it as a gather, for which a converter moves the axis to the front."""
    numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
    whole = [axis for axis in range(x.ndim) if axis not in numbers.start_index_map]
    if (
        place.shape != (1,)
        or len(numbers.start_index_map) != 1
        or numbers.collapsed_slice_dims != numbers.start_index_map
        or numbers.operand_batching_dims
        or any(sizes[axis] is not x.shape[axis] and sizes[axis] != x.shape[axis] for axis in whole)
    ):
        return None
    return jax.lax.index_in_dim(x, int(place[0]), numbers.start_index_map[0], keepdims=False)


def _foldable(eqn: Any, inputs: list[Any]) -> bool:
    if any(isinstance(value, jax.core.Tracer) for value in inputs):
        return False
    if not _static(eqn):
        return False
    made = sum(math.prod(var.aval.shape) for var in eqn.outvars)
    return made <= max(LARGEST_FOLD, sum(np.size(value) for value in inputs))


def _scan(params: dict[str, Any], inputs: list[Any]) -> list[Any]:
    body, length, constants, carried = (params[key] for key in ("jaxpr", "length", "num_consts", "num_carry"))
    fixed, state, sequences = inputs[:constants], inputs[constants : constants + carried], inputs[constants + carried :]
    rounds: list[list[Any]] = []
    for turn in range(length)[:: -1 if params["reverse"] else 1]:
        out = _run(body.jaxpr, body.consts, [*fixed, *state, *(sequence[turn] for sequence in sequences)])
        state = out[:carried]
        rounds.append(out[carried:])
    ordered = rounds[::-1] if params["reverse"] else rounds
    return [*state, *(jnp.stack(column) for column in zip(*ordered, strict=True))]


def _without_unread(closed: core.ClosedJaxpr) -> core.ClosedJaxpr:
    jaxpr = closed.jaxpr
    read = {var for var in jaxpr.outvars if not isinstance(var, core.Literal)}
    kept = []
    for eqn in reversed(jaxpr.eqns):
        if read.intersection(eqn.outvars):
            kept.append(eqn)
            read.update(var for var in eqn.invars if not isinstance(var, core.Literal))
    return closed.replace(jaxpr=jaxpr.replace(eqns=kept[::-1]))
