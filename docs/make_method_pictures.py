"""Draws docs/pictures/METHOD.png for every method: what it keeps or merges of one handwritten digit.

    python docs/make_method_pictures.py [METHOD ...]

A small ViT (a token per pixel of scikit-learn's 8x8 digits) is trained first, then fine-tuned a little with each method
that learns something; about ten minutes on two cores for all. The pictures illustrate, they measure nothing.
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

import slimvit_jax as slim
from slimvit_jax.analysis import visualize
from slimvit_jax.analysis.pictures import picture_lives
from slimvit_jax.ops import cluster

FOLDER = Path(__file__).parent / "pictures"
BACKBONE = dict(img_size=8, patch_size=1, in_chans=1, embed_dim=48, depth=6, num_heads=3, mlp_ratio=2.0, num_classes=10)
PLACES = dict(keep_rate=0.65, locations=(3, 4, 5))
#: Options, and steps of fine-tuning (0: the dense model's weights as they are).
RECIPES: dict[str, tuple[dict[str, Any], int]] = {
    "life_regression": (dict(**PLACES, predictor_init="negative_identity", predictor_scale=0.02), 300),
    "evit": (PLACES, 300),
    "dynamicvit": (PLACES, 300),
    "tome": (dict(r=6), 0),
    "diffrate": (dict(keep_rate=0.6), 0),
    "pitome": (dict(ratio=0.85), 0),
    "tofu": (dict(ratio=0.85), 0),
    "avit": (dict(gate_scale=5.0, gate_center=5.0), 300),
    "ia_red2": (PLACES, 300),
    "evo": (dict(keep_rate=0.4, locations=(3, 5)), 300),
    "sit": (PLACES, 300),
    "topk": (PLACES, 300),
    "random": (PLACES, 300),
    "ats": (PLACES, 300),
    "cropr": (dict(pruning_rate=10), 300),
    "kmedoids": (PLACES, 300),
    "mctf": (dict(r=7), 300),
    "dpcknn": (PLACES, 300),
    "dtem": (dict(r=6), 300),
    "sinkhorn": (dict(**PLACES, sinkhorn_eps=0.1), 300),
    "patchmerger": (PLACES, 300),
}
#: Weights of losses other than a method's defaults, for so short a training.
WEIGHTS = {"avit": {"ponder": 0.02}}
BATCH, SAMPLE = 64, 3


@functools.cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    """(1797, 8, 8, 1) float32 in 0..1 and their labels."""
    data = load_digits()
    return (data.images[..., None] / 16).astype(np.float32), data.target


def normalised(images: np.ndarray) -> jnp.ndarray:
    return (jnp.asarray(images) - 0.3) / 0.38


def train(model: Any, variables: Any, steps: int, rate: float, dense: tuple[Any, Any] | None) -> Any:
    """The variables after `steps` of Adam with warm-up and a cosine schedule."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, max(1, steps // 10), steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=0.02))
    weights = {**model.loss_weights(), **WEIGHTS.get(model.slim.method, {})}

    def loss(params: Any, images: jax.Array, labels: jax.Array, key: jax.Array) -> jax.Array:
        logits, aux = model.apply({"params": params}, images, train=True, return_aux=True, rngs={"dropout": key})
        teacher = None
        if dense is not None and model.slim.needs_teacher:
            teacher = dense[0].apply(dense[1], images, return_aux=True, record_tokens=True)
        losses = model.losses(logits, aux, slim.Targets(jax.nn.one_hot(labels, 10), teacher=teacher))
        return sum(weights[name] * value.mean() for name, value in losses.items())

    @jax.jit
    def step(params: Any, state: Any, images: jax.Array, labels: jax.Array, key: jax.Array):
        gradient = jax.grad(loss)(params, images, labels, key)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    params, state = variables["params"], optimizer.init(variables["params"])
    random, (images, labels) = np.random.default_rng(0), digits()
    for i in range(steps):
        rows = random.integers(100, len(images), BATCH)  # the first hundred are for looking at
        params, state = step(params, state, normalised(images[rows]), jnp.asarray(labels[rows]), jax.random.key(i))
    return {"params": params}


def owners(aux: Any) -> list[np.ndarray]:
    """(N,) per reduction: the number of the token that each patch of the first image is part of, most of all.

    -1 for a patch that was dropped. Methods that keep account in "owner" say it of the end only.
    """
    taps = aux.taps
    if "owner" in taps:
        return [np.asarray(taps["owner"][0, 1:])]
    if "clusters" in taps:
        held = [jnp.arange(taps["clusters"][0].shape[1])[None]]
        for clusters in taps["clusters"]:
            held.append(cluster.follow(held[-1], clusters[:1]))
        return [np.asarray(owner[0]) for owner in held[1:]]
    soft = [np.asarray(a[0]) for a in taps["assignment"]] if "assignment" in taps else []
    soft = soft or [np.asarray(a[0]).T for a in taps["assignments"]]  # now (m, n): new tokens, old tokens
    shares, whole = [], np.eye(soft[0].shape[1])
    for assignment in soft:
        whole = assignment @ whole
        shares.append(whole)
    return [share.argmax(axis=0) for share in shares]


def picture_groups(path: Path, image: np.ndarray, groups: list[np.ndarray], counts: list[int]) -> None:
    """The image, and after each reduction every group of merged patches in its mean shade, fenced in; crosses: none."""
    with matplotlib.rc_context({**visualize.STYLE, "axes.grid": False}):
        figure = Figure(figsize=(2.1 * (1 + len(groups)), 2.35), layout="constrained")
        axes = figure.subplots(1, 1 + len(groups), squeeze=False)[0]
        side = image.shape[0]
        for axis, owner, count in zip(axes, [None, *groups], [0, *counts], strict=True):
            shown = image[..., 0]
            if owner is not None:
                flat = shown.reshape(-1)
                means = {k: flat[owner == k].mean() if k >= 0 else 0.0 for k in np.unique(owner)}
                rows, columns = np.nonzero(owner.reshape(side, side) < 0)
                axis.plot(columns, rows, "x", color=visualize.ACCENT, ms=4)
                shown = np.array([means[k] for k in owner]).reshape(side, side)
                grid = owner.reshape(side, side)
                for row, column in np.argwhere(grid[:, 1:] != grid[:, :-1]):
                    axis.plot([column + 0.5] * 2, [row - 0.5, row + 0.5], color=visualize.ACCENT, lw=1)
                for row, column in np.argwhere(grid[1:] != grid[:-1]):
                    axis.plot([column - 0.5, column + 0.5], [row + 0.5] * 2, color=visualize.ACCENT, lw=1)
                axis.set_title(f"{count} tokens", fontsize=9)
            axis.imshow(shown, cmap="gray", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        figure.savefig(path, dpi=100)


def draw(method: str, dense: tuple[Any, Any]) -> Path:
    """Trains what there is to train, and draws."""
    options, steps = RECIPES[method]
    model = slim.create_model("vit", method=method, **BACKBONE, **options)
    fresh = jax.jit(model.init)(jax.random.key(1), normalised(digits()[0][:1]))
    variables = {"params": {**fresh["params"], **dense[1]["params"]}}
    if steps:
        variables = train(model, variables, steps, 1e-3, dense)
    images = digits()[0]
    logits, aux = jax.jit(functools.partial(model.apply, return_aux=True))(variables, normalised(images[:100]))
    right = float((logits.argmax(-1) == digits()[1][:100]).mean())
    print(f"{method}: {right:.0%} of 100 right, tokens {aux.token_counts}", flush=True)
    path = FOLDER / f"{method}.png"
    sample = images[SAMPLE : SAMPLE + 1]
    aux = jax.tree.map(lambda leaf: leaf[SAMPLE : SAMPLE + 1], aux)
    if aux.kept is None:
        groups = owners(aux)
        counts = sorted(set(model.slim.plan.mlp))[::-1][-len(groups) :]
        picture_groups(path, sample[0], groups, counts)
    else:
        scores = aux.scores
        if scores is not None and method not in ("life_regression", "avit"):  # whose unit says something: layers
            scores = (scores - scores.min()) / (scores.max() - scores.min())
        picture_lives(path, model, SimpleNamespace(scores=scores, kept=aux.kept), sample)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", help="all if none is named")
    parser.add_argument("--steps", type=int, default=600, help="of the dense model's training")
    arguments = parser.parse_args()
    if unknown := set(arguments.methods) - set(RECIPES):
        parser.error(f"no recipe for {', '.join(sorted(unknown))}; choices: {', '.join(RECIPES)}")
    FOLDER.mkdir(exist_ok=True)
    model = slim.create_model("vit", **BACKBONE)
    variables = jax.jit(model.init)(jax.random.key(0), normalised(digits()[0][:1]))
    # ViT's 0.02 is made for wide models and long training; positions and products start large enough to learn fast.
    variables = jax.tree.map(lambda leaf: 5 * leaf if leaf.ndim == 2 else leaf, variables)
    variables["params"]["pos_embed"] = 25 * variables["params"]["pos_embed"]
    dense = (model, train(model, variables, arguments.steps, 2e-3, None))
    logits = jax.jit(model.apply)(dense[1], normalised(digits()[0][:100]))
    print(f"dense: {float((logits.argmax(-1) == digits()[1][:100]).mean()):.0%} of 100 right", flush=True)
    for method in arguments.methods or RECIPES:
        draw(method, dense)


if __name__ == "__main__":
    main()
