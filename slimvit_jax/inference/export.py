"""`slim.export`: a model's inference as one file that needs neither flax nor this library to run."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from slimvit_jax.build import transform_for
from slimvit_jax.errors import SlimError, unknown
from slimvit_jax.files import atomic_path, write_text
from slimvit_jax.images import Preprocess
from slimvit_jax.keywords import checked
from slimvit_jax.options import Count

SUFFIXES = (".onnx", ".stablehlo")
OUTPUTS = ("logits", "features", "tokens", "kept", "scores")
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
#: The entry of a file's metadata: an ONNX property, or a member of the zip archive at the end of a .stablehlo.
METADATA = "slimvit.json"
#: Largest difference to the model, over the largest value of an output, by the model's dtype.
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 5e-3}
_CHECKED = 4  # images


@dataclasses.dataclass(frozen=True)
class ExportReport:
    """What was written, and what came of running it once.

    Attributes:
      path: the file.
      outputs: their names in order, and types such as "float32[batch,1000]".
      difference: largest absolute difference of any output to the model's, over the images that agree; None where the
        file is for platforms that this machine lacks.
      agreeing: images of the `images` whose outputs agree. Fewer than all where two patches rank so alike that
        rounding decides which of them stays.
      images: how many random images were run.
      metadata: as `read_metadata` gives it.
    """

    path: Path
    outputs: dict[str, str]
    difference: float | None
    agreeing: int
    images: int
    metadata: dict[str, Any]


@checked
def export(
    model: Any,
    variables: Any,
    path: str | Path,
    *,
    batch_size: Count | None = None,
    outputs: tuple[str, ...] = ("logits",),
    platforms: tuple[str, ...] | None = None,
    preprocess: Preprocess | None = None,
    class_names: tuple[str, ...] | None = None,
) -> ExportReport:
    """Writes images (B, H, W, C) float32, prepared as by `transform_for`, to logits (B, classes), the weights inside.

    The file is run once before it gets its name, by ONNX Runtime or JAX, and compared with the model: what does not
    agree is not written. What a user of the file has to know travels in it, see `read_metadata`.

    Args:
      model: from create_model, or any that goes with `variables`.
      variables: its variables.
      path: its suffix says what is written: .onnx (ONNX, opset 20; needs the extra: pip install 'slimvit-jax[onnx]'),
        which computes in float32 whatever the model's dtype, or .stablehlo (`jax.export`). An earlier file is replaced.
      batch_size: a fixed B, or None for any.
      outputs: what the file gives, in this order: "logits" (B, classes); "features" (B, D), what the classifier reads,
        also of models without one; "tokens" (B, P + n, D) after the final norm; "kept", (B, n) int32 per reduction,
        named kept_1, kept_2, ...; "scores" (B, N).
      platforms: of a .stablehlo: "cpu", "cuda", "rocm", "tpu"; None: the present one. For others, build the model with
        attention="xla", since "auto" chooses for the present one.
      preprocess: noted in the file; None: `transform_for(model)`.
      class_names: noted in the file; None: the model's, where it has any.

    Raises:
      SlimError: another suffix, the extra is missing, a model without classes whose logits are asked for, outputs that
        the method has not, what ONNX has no form for, or a file that does not compute what the model does.
    """
    path = Path(path)
    check_export(model, path, outputs, platforms)
    if path.suffix == ".onnx":
        model = model.clone(dtype="float32")
    metadata = describe(model, outputs, batch_size, preprocess, class_names)
    function = outputs_of(model, variables, outputs)
    count = batch_size or jax.export.symbolic_shape("batch")[0]
    images = jax.ShapeDtypeStruct((count, *model.img_size, model.in_chans), jnp.float32)
    shapes = _in_order(jax.eval_shape(function, images), outputs)
    if path.suffix == ".onnx":
        from slimvit_jax.inference import onnx_file

        run, write = onnx_file.converted(function, images, shapes, {METADATA: json.dumps(metadata)})
    else:
        run, write = _stablehlo(function, images, list(shapes), platforms, metadata)
    difference, agreeing, count = _compared(model, function, run, batch_size)
    with atomic_path(path) as temporary:
        write(temporary)
    named = {name: f"{s.dtype}[{','.join(map(str, s.shape))}]" for name, s in shapes.items()}
    return ExportReport(path, named, difference, agreeing, count, metadata)


def check_export(model: Any, path: Path, outputs: Sequence[str], platforms: Sequence[str] | None = None) -> None:
    """Raises SlimError for what `export` refuses, as far as that is known beforehand."""
    if path.suffix not in SUFFIXES:
        raise unknown(f"kind of file to export, by the suffix of {str(path)!r},", path.suffix, SUFFIXES)
    if path.suffix == ".onnx" and importlib.util.find_spec("jax2onnx") is None:
        raise SlimError(f"{str(path)!r}: writing ONNX needs jax2onnx: pip install 'slimvit-jax[onnx]'")
    if path.suffix == ".onnx" and platforms is not None:
        raise SlimError(f"platforms={tuple(platforms)!r} goes with .stablehlo; an ONNX file is for any")
    for name in platforms or ():
        if name not in PLATFORMS:
            raise unknown("platform", name, PLATFORMS)
    if path.is_dir():
        raise SlimError(f"{str(path)!r} is a folder, not a file to write")
    for name in outputs:
        if name not in OUTPUTS:
            raise unknown("output to export", name, OUTPUTS)
    if not outputs or len(set(outputs)) < len(outputs) or {"logits", "features"} <= set(outputs):
        raise SlimError(f"outputs={tuple(outputs)!r}: each once, and logits or features, not both")
    if "logits" in outputs and not model.num_classes:
        raise SlimError("num_classes=0: a model without classes has no logits to export; ask for the output 'features'")
    if "kept" in outputs and model.slim.merges:
        raise SlimError(f"method {model.slim.method!r} merges patches: there is no output 'kept'")


def describe(
    model: Any,
    outputs: Sequence[str],
    batch_size: int | None,
    preprocess: Preprocess | None,
    class_names: Sequence[str] | None,
) -> dict[str, Any]:
    """What travels in the file, as JSON has it."""
    names = tuple(model.class_names if class_names is None else class_names)
    if names and len(names) != model.num_classes:
        raise SlimError(f"{len(names)} class names for a model of {model.num_classes} classes")
    prepare, takes = preprocess or transform_for(model), (*model.img_size, model.in_chans)
    if (gives := (*prepare.size, prepare.in_chans)) != takes:
        raise SlimError(f"preprocess makes images of shape {gives}; this model takes {takes}")
    return {
        "made_by": "slimvit_jax",
        "layout": "NHWC, (pixels / 255 - mean) / std",
        "preprocess": prepare.to_dict(),
        "class_names": list(names),
        "num_classes": model.num_classes,
        "method": model.slim.method,
        "token_counts": list(model.slim.plan.token_counts),
        "outputs": list(outputs),
        "batch_size": batch_size,
    }


def read_metadata(path: str | Path) -> dict[str, Any]:
    """What travels in an exported file: "preprocess" (fields of `Preprocess`), "class_names", "token_counts", ...

    Without this library: an ONNX file has it as the property "slimvit.json" (onnxruntime:
    `session.get_modelmeta().custom_metadata_map`); a .stablehlo ends in a zip archive with the one member
    "slimvit.json" (`zipfile.ZipFile(path).read(...)`), which jax.export.deserialize does not look at.

    Raises:
      SlimError: not a file that `export` wrote.
    """
    path = Path(path)
    try:
        if path.suffix == ".onnx":
            from slimvit_jax.inference import onnx_file

            found = onnx_file.read_property(path, METADATA)
        else:
            with zipfile.ZipFile(path) as archive:
                found = archive.read(METADATA).decode()
        return dict(json.loads(found))
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise SlimError(f"{str(path)!r} is no file of slim.export: {error}") from None


def write_mlir(path: Path, text: Path) -> None:
    """Writes the StableHLO of a .stablehlo as text."""
    write_text(text, jax.export.deserialize(bytearray(path.read_bytes())).mlir_module())


def outputs_of(model: Any, variables: Any, outputs: Sequence[str]) -> Callable[[Any], dict[str, Any]]:
    """images to the named outputs; `kept` gives as many as there are reductions."""
    model = model.clone(num_classes=0, class_names=()) if "features" in outputs else model

    def function(images: Any) -> dict[str, Any]:
        if set(outputs) <= {"logits", "features"}:
            return {outputs[0]: model.apply(variables, images)}
        first, aux = model.apply(variables, images, return_aux=True)
        every = {"logits": first, "features": first, "tokens": aux.features, "scores": aux.scores}
        found: dict[str, Any] = {}
        for name in outputs:
            if name == "kept" and aux.kept:
                found |= {f"kept_{place}": index for place, index in enumerate(aux.kept, start=1)}
            elif every.get(name) is None:
                raise SlimError(f"method {model.slim.method!r} has no output {name!r}")
            else:
                found[name] = every[name]
        return found

    return function


def _in_order(shapes: dict[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
    """As asked for; jax sorts the keys of a dict."""
    place = lambda name: (outputs.index(name.split("_")[0]), int(name.partition("_")[2] or 0))
    return {name: shapes[name] for name in sorted(shapes, key=place)}


def _stablehlo(
    function: Any, images: Any, names: list[str], platforms: Sequence[str] | None, metadata: dict[str, Any]
) -> Any:
    def flat(images: Any) -> Any:
        found = function(images)
        return found[names[0]] if len(names) == 1 else tuple(found[name] for name in names)

    exported = jax.export.export(jax.jit(flat), platforms=None if platforms is None else tuple(platforms))(images)
    data = exported.serialize()

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        out = jax.export.deserialize(bytearray(data)).call(images)
        return dict(zip(names, [out] if len(names) == 1 else out, strict=True))

    def write(path: Path) -> None:
        path.write_bytes(data)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(METADATA, json.dumps(metadata))

    here = {"gpu" if platform in ("cuda", "rocm") else platform for platform in exported.platforms}
    return (run if jax.default_backend() in here else None), write


def _compared(model: Any, function: Any, run: Any, batch_size: int | None) -> tuple[float | None, int, int]:
    if run is None:
        return None, 0, 0
    count = batch_size or _CHECKED
    images = np.random.default_rng(0).standard_normal((count, *model.img_size, model.in_chans), np.float32)
    ours, theirs = jax.jit(function)(images), run(images)
    worst = np.zeros(count)
    agrees = np.ones(count, bool)
    for name, value in ours.items():
        wide, other = (np.asarray(found, np.float64).reshape(count, -1) for found in (value, theirs[name]))
        if name.startswith("kept"):  # the order of patches that rank alike is free
            wide, other = np.sort(wide, axis=1), np.sort(other, axis=1)
        gap = np.abs(wide - other).max(axis=1, initial=0.0)
        agrees &= gap <= TOLERANCE[model.dtype] * max(1.0, np.abs(wide).max(initial=0.0))  # NaN never does
        worst = np.maximum(worst, gap)
    if 2 * agrees.sum() < count:
        raise SlimError(
            f"not written: the exported file and the model differ by {worst.max():.2g} on {count - agrees.sum()} of"
            f" {count} random images"
        )
    return float(worst[agrees].max()), int(agrees.sum()), count
