"""What the pieces of the algebra (ops/pieces.py) are in ONNX: operators that runtimes have kernels for.

Every function here has the arguments of the piece of its name, values of the graph in place of arrays, behind the
`Writer` of the nodes.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

Value = Any  # onnx_ir.Value


class Writer:
    """Writes the nodes of one piece: `write.MatMul(a, b)`; attributes are keywords, and `results` how many there are.

    Attributes:
      shapes: of the piece's inputs, by value; dimensions may be symbolic.
      dtypes: likewise.
    """

    def __init__(self, context: Any, inputs: Sequence[tuple[Value, Any]]):
        self._context = context
        self.shapes = {id(value): aval.shape for value, aval in inputs}
        self.dtypes = {id(value): aval.dtype for value, aval in inputs}

    def __getattr__(self, operator: str) -> Any:
        def node(*inputs: Value, results: int = 1, **attributes: Any) -> Value:
            names = [self._context.fresh_name(operator.lower()) for _ in range(results)]
            return getattr(self._context.builder, operator)(*inputs, _outputs=names, **attributes)

        return node

    def constant(self, value: Any, dtype: Any = None) -> Value:
        """An initializer."""
        return self._context.bind_const_for_var(object(), np.asarray(value, dtype))

    def ints(self, *numbers: int) -> Value:
        """An int64 vector: a shape, axes."""
        return self.constant(numbers, np.int64)

    def sides(self, shape: Sequence[Any]) -> Value:
        """A shape, the one dimension that is not a number being what is left."""
        return self.ints(*(side if isinstance(side, int) else -1 for side in shape))

    def size(self, dimension: Any) -> Value:
        """A symbolic dimension as an int64 vector of one."""
        value, axis = self._context.get_symbolic_dim_origin(dimension).as_tuple()
        return self.Shape(value, start=axis, end=axis + 1)

    def int32(self, value: Value) -> Value:
        """As our indices are."""
        return self.Cast(value, to=6)

    def int64(self, value: Value) -> Value:
        """As operators take indices."""
        return self.Cast(value, to=7)


def layer_norm(write: Writer, x: Value, scale: Value, bias: Value, eps: float) -> Value:
    return write.LayerNormalization(x, scale, bias, axis=-1, epsilon=float(eps))


def gelu(write: Writer, x: Value) -> Value:
    return write.Gelu(x, approximate="none")


def gelu_tanh(write: Writer, x: Value) -> Value:
    return write.Gelu(x, approximate="tanh")


def linear(write: Writer, x: Value, kernel: Value, bias: Value | None = None) -> Value:
    y = write.MatMul(x, kernel)
    return y if bias is None else write.Add(y, bias)


def split_heads(write: Writer, qkv: Value, count: int) -> list[Value]:
    width = write.shapes[id(qkv)][-1] // 3
    parts = _projections(write, qkv, 3) or write.Split(qkv, results=3, axis=-1, num_outputs=3)
    return [write.Reshape(part, write.ints(0, 0, count, width // count)) for part in parts]


def _projections(write: Writer, y: Value, parts: int) -> list[Value] | None:
    """A linear map's output cut into equal parts by cutting its weights, which saves a copy; None if it is none."""
    add = y.producer()
    product = add.inputs[0].producer() if add is not None and add.op_type == "Add" else add
    if product is None or product.op_type != "MatMul" or product.inputs[1].const_value is None:
        return None
    x, kernel = product.inputs[0], np.split(product.inputs[1].const_value.numpy(), parts, axis=1)
    if add is product:
        return [linear(write, x, write.constant(part)) for part in kernel]
    bias = np.split(add.inputs[1].const_value.numpy(), parts)
    return [linear(write, x, write.constant(w), write.constant(b)) for w, b in zip(kernel, bias, strict=True)]


def _logits(write: Writer, q: Value, k: Value, log_weight: Value | None, bias: Value | None) -> Value:
    scale = write.constant(write.shapes[id(q)][-1] ** -0.5, np.float32)
    queries = write.Mul(write.Transpose(q, perm=(0, 2, 1, 3)), scale)
    logits = write.MatMul(queries, write.Transpose(k, perm=(0, 2, 3, 1)))
    if log_weight is not None:
        logits = write.Add(logits, write.Unsqueeze(log_weight, write.ints(1, 2)))
    return logits if bias is None else write.Add(logits, bias)


def attention(
    write: Writer,
    q: Value,
    k: Value,
    v: Value,
    *,
    log_weight: Value | None = None,
    bias: Value | None = None,
    backend: str = "auto",
) -> Value:
    return weighted_values(write, write.Softmax(_logits(write, q, k, log_weight, bias), axis=-1), v)


def attention_and_received(
    write: Writer, q: Value, k: Value, v: Value, *, log_weight: Value | None = None
) -> list[Value]:
    weights = attention_probabilities(write, q, k, log_weight=log_weight)
    return [weighted_values(write, weights, v), write.ReduceMean(weights, write.ints(2), keepdims=0)]


def attention_probabilities(write: Writer, q: Value, k: Value, *, log_weight: Value | None = None) -> Value:
    return write.Softmax(_logits(write, q, k, log_weight, None), axis=-1)


def weighted_values(write: Writer, weights: Value, v: Value) -> Value:
    return write.Transpose(write.MatMul(weights, write.Transpose(v, perm=(0, 2, 1, 3))), perm=(0, 2, 1, 3))


def _first(write: Writer, values: Value, k: int, before: str) -> Value:
    """Places of the first k along axis 1, equals in ascending order of their places, as int32.

    ONNX's TopK promises that order but OpenVINO does not keep it, so it is given numbers that are all different: how
    many come before each.
    """
    n = write.shapes[id(values)][1]
    own, other = write.Unsqueeze(values, write.ints(2)), write.Unsqueeze(values, write.ints(1))
    earlier = write.constant(np.tri(n, k=-1, dtype=bool)[None])  # (1, own, other)
    ahead = write.Or(getattr(write, before)(other, own), write.And(write.Equal(other, own), earlier))
    place = write.ReduceSum(write.Cast(ahead, to=1), write.ints(2), keepdims=0)
    return write.int32(write.TopK(place, write.ints(k), results=2, axis=1, largest=0, sorted=1)[1])


def top(write: Writer, scores: Value, k: int) -> Value:
    return _first(write, scores, k, "Greater")


def top_values(write: Writer, scores: Value, k: int) -> Value:
    return write.TopK(scores, write.ints(k), results=2, axis=-1, largest=1, sorted=1)[0]


def first_highest(write: Writer, values: Value, axis: int) -> list[Value]:
    # Not in two reductions as ours: OpenVINO's ReduceMax makes a finite number of -inf, and its ReduceMin of whole
    # numbers was seen to go wrong behind a Where.
    axis %= len(write.shapes[id(values)])
    first = write.ArgMax(values, axis=axis, keepdims=0, select_last_index=0)
    return [write.int32(first), write.ReduceMax(values, write.ints(axis), keepdims=0)]


def argsort(write: Writer, values: Value) -> Value:
    return _first(write, values, write.shapes[id(values)][1], "Less")


def gather(write: Writer, values: Value, index: Value) -> Value:
    if write.dtypes[id(values)] == np.bool_:
        return write.Cast(_rows(write, write.Cast(values, to=6), index, len(write.shapes[id(values)])), to=9)
    return _rows(write, values, index, len(write.shapes[id(values)]))


def _rows(write: Writer, values: Value, index: Value, rank: int) -> Value:
    if rank == 2:
        return write.GatherElements(values, index, axis=1)
    return write.GatherND(values, write.Unsqueeze(write.int64(index), write.ints(-1)), batch_dims=1)


def put(write: Writer, values: Value, index: Value, new: Value) -> Value:
    boolean = write.dtypes[id(values)] == np.bool_
    own, other = (write.Cast(value, to=6) if boolean else value for value in (values, new))
    # One column more, for the places past the end.
    wide = write.Pad(own, write.ints(0, 0, 0, 1))
    done = write.ScatterElements(wide, index, other, axis=1)
    done = write.Slice(done, write.ints(0), write.ints(write.shapes[id(values)][1]), write.ints(1))
    return write.Cast(done, to=9) if boolean else done


# What a graph of any batch says in many nodes, unless told that the batch is what is left ----------------------------


def reshape(write: Writer, x: Value, shape: Sequence[Any]) -> Value:
    return write.Reshape(x, write.sides(shape))


def broadcast(write: Writer, x: Value, shape: Sequence[Any], broadcast_dimensions: Sequence[int]) -> Value:
    added = [axis for axis in range(len(shape)) if axis not in broadcast_dimensions]
    apart = write.Unsqueeze(x, write.ints(*added)) if added and write.shapes[id(x)] else x
    own = dict(zip(broadcast_dimensions, write.shapes[id(x)], strict=True))
    if all(own.get(axis, 1) == side for axis, side in enumerate(shape)):
        return apart
    sides = [write.size(side) if not isinstance(side, int) else write.ints(side) for side in shape]
    return write.Expand(apart, write.Concat(*sides, axis=0))


def pad(write: Writer, x: Value, value: Value, padding_config: Sequence[tuple[int, int, int]]) -> Value:
    low, high = ([side[end] for side in padding_config] for end in (0, 1))
    return write.Pad(x, write.ints(*low, *high), value)


PIECES = {
    function.__name__: function
    for function in (
        layer_norm,
        gelu,
        gelu_tanh,
        linear,
        split_heads,
        attention,
        attention_and_received,
        attention_probabilities,
        weighted_values,
        top,
        top_values,
        first_highest,
        argsort,
        gather,
        put,
        reshape,
        broadcast,
        pad,
    )
}


@functools.cache
def register() -> None:
    """Tells jax2onnx how the pieces are written; once."""
    from jax2onnx.plugins.plugin_system import PrimitiveLeafPlugin, register_primitive

    from slimvit_jax.inference import onnx_trace

    def plugin(name: str) -> None:
        class Piece(PrimitiveLeafPlugin):  # type: ignore[misc]
            _PRIM = onnx_trace.primitive(name)

            def lower(self, context: Any, eqn: Any) -> None:
                inputs = [context.get_value_for_var(var) for var in eqn.invars]
                write = Writer(context, [(v, var.aval) for v, var in zip(inputs, eqn.invars, strict=True)])
                out = onnx_trace.call(eqn.params, inputs, functools.partial(PIECES[name], write))
                for var, value in zip(eqn.outvars, out if isinstance(out, list) else [out], strict=True):
                    planned = context.get_value_for_var(var)
                    value.type, value.shape = planned.type, planned.shape
                    context.bind_value_for_var(var, value)

        register_primitive(jaxpr_primitive=Piece._PRIM.name)(Piece)

    for name in PIECES:
        plugin(name)
