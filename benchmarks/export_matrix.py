"""Every method on every backbone as an ONNX file with a batch of any size, run at batches 1, 3 and 16 against JAX.

    python -m benchmarks.export_matrix --output results/export_matrix.json          goes on where it stopped

Small models with random weights and random images: what is looked at is whether a graph computes the same, not how
fast. Logits are compared, their differences over the largest of them, and the patches kept, as sets, image by image.
ONNX Runtime runs every file, OpenVINO where it is installed. A combination that `create_model` or `slim.export` refuses
is listed with its reason.
"""

from __future__ import annotations

import argparse
import collections
import importlib.util
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.command import command_line

os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # what is compared is small: compiling is all the time

import jax  # noqa: E402
import jax.numpy as jnp
import numpy as np

import slimvit_jax as slim
from slimvit_jax.errors import unknown
from slimvit_jax.files import read_json, write_json, write_text
from slimvit_jax.inference.timing import describe_machine
from slimvit_jax.options import kinds_of

VIT = dict(img_size=32, patch_size=4, embed_dim=48, depth=4, num_heads=3, num_classes=10)
LEVIT = dict(img_size=64, embed_dim=(32, 48), depth=(2, 2), num_heads=(2, 3), key_dim=8, num_classes=10)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit", VIT),
    "deit_distilled": ("deit_distilled", VIT),
    "registers": ("vit", VIT | {"reg_tokens": 4, "init_values": 1.0}),
    "no class token": ("vit", VIT | {"class_token": False, "global_pool": "avg"}),
    "lvvit": ("lvvit", VIT | {"img_size": 64, "patch_size": 16}),
    "levit": ("levit", LEVIT),
}
#: Options that fit these models, of those that a method has.
FIT = {
    "keep_rate": 0.6,
    "locations": (2, 3),
    "layers": (2, 3),
    "r": 6,
    "k_neighbors": 3,
    "ratio": 0.8,
    "pruning_rate": 3,
}
BATCHES = (1, 3, 16)


def build(family: str, method: str | None) -> Any:
    """The model; a SlimError where the method does not go with the backbone."""
    name, size = FAMILIES[family]
    fit = {key: value for key, value in FIT.items() if method and key in kinds_of(slim.methods.METHODS[method])}
    if fit.keys() & {"r", "ratio"}:
        fit.pop("keep_rate", None)
    return slim.create_model(name, method=method, **size, **fit)


def random_variables(model: Any, seed: int = 0) -> Any:
    """Kernels that keep the scale of their input, nothing else zero: ties of scores are rare."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *model.img_size, model.in_chans)))
    rng = np.random.default_rng(seed)

    def draw(path: Any, leaf: Any) -> jax.Array:
        noise, name = rng.normal(size=leaf.shape), path[-1].key
        spread = {"kernel": 1.4 / np.sqrt(max(1, np.prod(leaf.shape[:-1]))), "scale": 0.1, "gamma": 0.1, "var": 0.1}
        middle = 1.0 if name in ("scale", "gamma", "var") else 0.0
        return jnp.asarray(middle + spread.get(name, 0.3) * noise, leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def runners(path: Path) -> Iterator[tuple[str, Any]]:
    """By runtime: images to outputs by name."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    yield "onnxruntime", lambda images: dict(zip(names, session.run(names, {"images": images}), strict=True))
    if importlib.util.find_spec("openvino"):
        import openvino

        config = {"INFERENCE_PRECISION_HINT": "f32"}
        compiled = openvino.Core().compile_model(openvino.Core().read_model(path), "CPU", config)
        yield "openvino", lambda images: {name: compiled([images])[name] for name in names}


def compare(family: str, method: str | None, folder: Path) -> dict[str, Any]:
    """One row: how far every runtime is from JAX, or why there is no file."""
    row: dict[str, Any] = {"family": family, "method": method or "dense"}
    try:
        model = build(family, method)
        variables = random_variables(model)
        kept = not model.slim.merges and model.slim.plan.attention[-1] < model.geometry.num_patches
        outputs = ("logits", "kept") if kept and not hasattr(model, "key_dim") else ("logits",)
        began = time.perf_counter()
        slim.export(model, variables, folder / "model.onnx", outputs=outputs)
        row |= {"seconds": round(time.perf_counter() - began, 1), "outputs": list(outputs)}
    except slim.SlimError as error:
        return row | {"refused": " ".join(str(error).split())}
    images = np.random.default_rng(1).standard_normal((max(BATCHES), *model.img_size, model.in_chans), np.float32)
    apply = jax.jit(lambda images: model.apply(variables, images, return_aux=True))
    logits, aux = apply(images)
    ours = {"logits": np.asarray(logits)} | {f"kept_{i}": np.asarray(k) for i, k in enumerate(aux.kept or (), start=1)}
    for runtime, run in runners(folder / "model.onnx"):
        row[runtime] = {}
        for batch in BATCHES:
            theirs = run(images[:batch])
            same = [
                bool((np.sort(ours[name][:batch], axis=1) == np.sort(value, axis=1)).all())
                for name, value in theirs.items()
                if name.startswith("kept")
            ]
            size = max(1.0, float(np.abs(ours["logits"]).max()))  # LeViT's logits are hundreds here
            gap = float(np.abs(theirs["logits"] - ours["logits"][:batch]).max()) / size
            row[runtime][str(batch)] = {"difference": gap, "same_tokens": all(same) if same else None}
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """Methods down, families across: the largest relative difference at any batch and runtime, or why not."""
    families, reasons = list(dict.fromkeys(row["family"] for row in rows)), collections.defaultdict(list)
    lines = ["| method | " + " | ".join(families) + " |", "| :-- " * (len(families) + 1) + "|"]
    for method in dict.fromkeys(row["method"] for row in rows):
        cells = []
        for family in families:
            row = next((row for row in rows if (row["method"], row["family"]) == (method, family)), None)
            if row is None:  # of a file that --families or --methods made
                cells.append("—")
                continue
            if "refused" in row:
                reasons[row["refused"].removeprefix(f"method '{method}' ")].append(f"{method} on {family}")
                cells.append("refused")
                continue
            found = [one for runtime in ("onnxruntime", "openvino") for one in row.get(runtime, {}).values()]
            tokens = {one["same_tokens"] for one in found} - {None}
            cells.append(f"{max(one['difference'] for one in found):.0e}" + (" *" if False in tokens else ""))
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    notes = [f"* {reason} ({', '.join(where)})" for reason, where in reasons.items()]
    return "\n".join([*lines, "", "Refused by name and reason:" if notes else "", *notes]).rstrip() + "\n"


def main(argv: list[str] | None = None) -> int:
    """Runs the command; exit status 2 for bad input."""
    methods, parser = ["dense", *slim.list_methods()], argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--families", default=",".join(FAMILIES), help="default: all")
    parser.add_argument("--methods", default=",".join(methods), help="default: dense and all")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="rows that are there are not done again")
    args = parser.parse_args(argv)
    rows = read_json(args.output)["rows"] if args.output and args.output.exists() else []
    command = command_line("export_matrix", argv)
    done = {(row["family"], row["method"]) for row in rows}
    families, asked = args.families.split(","), args.methods.split(",")
    for kind, values, choices in (("family", families, FAMILIES), ("method", asked, methods)):
        for value in set(values) - set(choices):
            print(f"export_matrix: error: {unknown(kind, value, choices)}", file=sys.stderr)
            return 2
    with tempfile.TemporaryDirectory() as folder:
        for family, method in itertools.product(families, asked):
            if (family, method) in done:
                continue
            rows.append(compare(family, None if method == "dense" else method, Path(folder)))
            print({key: value for key, value in rows[-1].items() if key != "outputs"}, flush=True)
            jax.clear_caches()
            if args.output:
                write_json(args.output, {"command": command, "machine": describe_machine(), "rows": rows})
    if args.output:
        write_text(args.output.with_suffix(".md"), table(rows))
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
