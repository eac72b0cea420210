"""Exported files in the runtimes that serve them: ours dense and slimmed, and timm's own export of the same model.

    python -m benchmarks.export_speed --output results/export_speed.json       # DeiT-S, batch 8

Everything takes turns in one process (`timing.interleave`), on all cores that it may use; ratios of medians are what
counts, with one thread those of CPU time, which other work on the machine disturbs least. timm's file is
torch.onnx.export of `timm.create_model(..., exportable=True)` with a dynamic batch. Weights are random: no time depends
on them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

import slimvit_jax as slim
from benchmarks.timm_worker import import_timm
from slimvit_jax.files import write_json, write_text
from slimvit_jax.inference.timing import describe_machine, interleave, sampler

NAME = "deit_small_patch16_224"
RATES = (1.0, 0.7, 0.5)
PAUSE = 0.2  # seconds before a sample: the threads of the session before it wait spinning


def export_ours(name: str, folder: Path) -> dict[str, tuple[Path, int]]:
    """By label: the file and its multiply-adds."""
    found = {}
    for rate in RATES:
        options = {} if rate == 1.0 else {"method": "life_regression", "keep_rate": rate}
        model = slim.create_model(name, **options)
        label = "ours, dense" if rate == 1.0 else f"ours, slimmed at {rate}"
        path = folder / f"ours_{rate}.onnx"
        if not path.exists():
            images = np.zeros((1, *model.img_size, model.in_chans), np.float32)
            slim.export(model, jax.jit(model.init)(jax.random.key(0), images), path)
        found[label] = path, slim.flops(model).total
    return found


def export_timm(name: str, folder: Path) -> Path:

    import torch

    path = folder / "timm.onnx"
    if path.exists():
        return path
    model = import_timm(torch).create_model(name, exportable=True).eval()
    images = torch.zeros((2, *model.default_cfg["input_size"]))
    names = {"input_names": ["images"], "output_names": ["logits"], "dynamic_axes": {"images": {0: "batch"}}}
    torch.onnx.export(model, (images,), str(path), dynamo=False, opset_version=17, **names)
    return path


def onnx_runtime(path: Path, images: np.ndarray, threads: int) -> Callable[[], Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"images": images})


def open_vino(path: Path, images: np.ndarray, threads: int) -> Callable[[], Any]:
    import openvino

    config = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    compiled = openvino.Core().compile_model(openvino.Core().read_model(path), "CPU", config)
    return lambda: compiled([images])


RUNTIMES = {"ONNX Runtime": onnx_runtime, "OpenVINO": open_vino}


def table(results: Mapping[str, Any]) -> str:
    """A line per runtime and file."""
    lines = ["| runtime | file | ms per batch | over timm's file | over our dense file | FLOPs ratio |"]
    lines.append("| :-- | :-- | --: | --: | --: | --: |")
    for runtime, rows in results["rows"].items():
        dense, timm = rows["ours, dense"], rows["timm's export, dense"]
        for label, row in rows.items():
            ratios = [f"{other['ms'] / row['ms']:.2f}" for other in (timm, dense)]
            lines.append(f"| {runtime} | {label} | {row['ms']:.1f} | {' | '.join(ratios)} | {row['flops_ratio']:.2f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default=NAME)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--files", metavar="DIR", help="keep the files there, and take those that are there")
    parser.add_argument("--output", metavar="FILE.json")
    args = parser.parse_args()
    threads = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(args.files or temporary)
        files = export_ours(args.model, folder)
        dense = files["ours, dense"][1]
        files["timm's export, dense"] = export_timm(args.model, folder), dense
        height, width = slim.transform_for(args.model).size
        ours = np.random.default_rng(0).standard_normal((args.batch_size, height, width, 3), np.float32)
        calls = {}
        for runtime, load in RUNTIMES.items():
            for label, (path, _) in files.items():
                images = ours if label.startswith("ours") else np.ascontiguousarray(ours.transpose(0, 3, 1, 2))
                calls[runtime, label] = sampler(load(path, images, threads))
        timings = interleave({f"{a}|{b}": call for (a, b), call in calls.items()}, args.rounds, 0.2, PAUSE)
    clock = "cpu" if threads == 1 else "wall"
    rows: dict[str, Any] = {runtime: {} for runtime in RUNTIMES}
    for runtime, label in calls:
        timing = timings[f"{runtime}|{label}"]
        samples = timing.cpu if clock == "cpu" else timing.wall
        rows[runtime][label] = {
            "ms": 1e3 * statistics.median(samples),
            "samples": [1e3 * seconds for seconds in samples],
            "flops_ratio": dense / files[label][1],
        }
    facts = {
        "model": args.model,
        "batch_size": args.batch_size,
        "threads": threads,
        "clock": clock,
        "machine": describe_machine(),
    }
    results = facts | {"rows": rows}
    if args.output:
        write_json(args.output, results)
        write_text(Path(args.output).with_suffix(".md"), table(results))
    print(table(results))


if __name__ == "__main__":
    main()
