"""ONNX files, by jax2onnx: conversion, the properties that travel in them, a first run in ONNX Runtime."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jax.extend import core

from slimvit_jax.errors import SlimError
from slimvit_jax.inference import onnx_pieces, onnx_trace
from slimvit_jax.quiet import quiet

#: LayerNormalization came with 17, Gelu with 20; the higher it is the fewer runtimes read the file.
OPSET = 20
#: Bytes that a protobuf file holds, less some for the graph.
LARGEST = 2**31 - 2**22


def converted(
    function: Callable[[Any], dict[str, Any]], images: Any, outputs: dict[str, Any], properties: dict[str, str]
) -> tuple[Callable[[np.ndarray], dict[str, np.ndarray]], Callable[[Path], object]]:
    """What runs the function as ONNX, images to outputs by name, and what writes it to a path.

    Raises:
      SlimError: weights of more than 2 GB, or something that jax2onnx does not convert.
    """
    names = list(outputs)
    closed = onnx_trace.traced(lambda images: _values(function(images), names), [images])
    size = sum(np.asarray(const).nbytes for const in closed.consts)
    if size > LARGEST:
        raise SlimError(
            f"{size / 1e9:.1f} GB of weights: an ONNX file holds 2 GB at most; .stablehlo has no such limit"
        )
    proto = _proto(closed, images, names)
    _declare(proto, outputs)
    for key, value in properties.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, value
    data = proto.SerializeToString()

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        import onnxruntime

        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        return dict(zip(names, session.run(names, {"images": images}), strict=True))

    return run, lambda path: Path(path).write_bytes(data)


def read_property(path: Path, key: str) -> str:
    """A property of an ONNX file; KeyError if it has none of that name, ValueError if it is no ONNX file."""
    import onnx

    try:
        found = {entry.key: entry.value for entry in onnx.load(path, load_external_data=False).metadata_props}
    except OSError:
        raise
    except Exception as error:  # protobuf's, which is no ValueError
        raise ValueError(f"no ONNX file ({type(error).__name__})") from None
    return str(found[key])


def _proto(closed: core.ClosedJaxpr, images: Any, names: list[str]) -> Any:
    import jax2onnx

    onnx_pieces.register()
    try:
        with quiet("onnx_ir", level=logging.ERROR):  # not its warnings about values whose type nobody needs
            proto = jax2onnx.to_onnx(
                core.jaxpr_as_fun(closed),
                [images],
                opset=OPSET,
                model_name="slimvit_jax",
                input_names=["images"],
                output_names=names,
            )
    except NotImplementedError as error:
        raise SlimError(f"jax2onnx cannot convert this model: {' '.join(str(error).split())}") from error
    return proto


def _values(found: dict[str, Any], names: list[str]) -> tuple[Any, ...]:
    return tuple(found[name] for name in names)


def _declare(proto: Any, outputs: dict[str, Any]) -> None:
    """Says the shapes of the outputs: what jax2onnx infers is not always right. Inner ones are optional."""
    del proto.graph.value_info[:]
    for value, shape in zip(proto.graph.output, outputs.values(), strict=True):
        sides = value.type.tensor_type.shape
        del sides.dim[:]
        for side in shape.shape:
            sides.dim.add(**({"dim_value": side} if isinstance(side, int) else {"dim_param": str(side)}))
