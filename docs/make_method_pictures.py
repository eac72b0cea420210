"""Draws docs/pictures/METHOD.png for every method: what it keeps or merges of one handwritten digit.

    python docs/make_method_pictures.py [METHOD ...]

A small ViT (a token per pixel of scikit-learn's 8x8 digits) is trained first, then fine-tuned a little with each method
that learns something; about ten minutes on two cores for all. The pictures illustrate, they measure nothing.
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import slimvit_jax as slim
from slimvit_jax.methods import METHODS
from slimvit_jax.reports.patches import draw_groups
from slimvit_jax.reports.pictures import groups_of, picture_lives

FOLDER = Path(__file__).parent / "pictures"
BACKBONE = dict(img_size=8, patch_size=1, in_chans=1, embed_dim=48, depth=6, num_heads=3, mlp_ratio=2.0, num_classes=10)
PLACES = dict(keep_rate=0.65, locations=(3, 4, 5))
#: Options, and steps of fine-tuning (0: the dense model's weights as they are). Of others see `recipe`.
RECIPES: dict[str, tuple[dict[str, Any], int]] = {
    "life_regression": (dict(**PLACES, predictor_init="negative_identity", predictor_scale=0.02), 300),
    "evit": (PLACES, 300),
    "dynamicvit": (PLACES, 300),
    "tome": (dict(r=6), 0),
    "diffrate": (dict(keep_rate=0.6), 0),
    "pitome": (dict(ratio=0.85), 0),
    "tofu": (dict(ratio=0.85), 0),
    "atc": (PLACES, 0),
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


def recipe(method: str) -> tuple[dict[str, Any], int]:
    """That of the table; without one, its defaults at these places."""
    fields = METHODS[method].__dataclass_fields__
    return RECIPES.get(method, ({name: value for name, value in PLACES.items() if name in fields}, 300))


def draw(method: str, dense: tuple[Any, Any], most: int) -> Path:
    """Trains what there is to train, `most` steps at most, and draws."""
    options, steps = recipe(method)
    model = slim.create_model("vit", method=method, **BACKBONE, **options)
    fresh = jax.jit(model.init)(jax.random.key(1), normalised(digits()[0][:1]))
    variables = {"params": {**fresh["params"], **dense[1]["params"]}}
    if steps:
        variables = train(model, variables, min(steps, most), 1e-3, dense)
    images = digits()[0]
    logits, aux = jax.jit(functools.partial(model.apply, return_aux=True))(variables, normalised(images[:100]))
    right = float((logits.argmax(-1) == digits()[1][:100]).mean())
    print(f"{method}: {right:.0%} of 100 right, tokens {aux.token_counts}", flush=True)
    path = FOLDER / f"{method}.png"
    sample = images[SAMPLE : SAMPLE + 1]
    aux = jax.tree.map(lambda leaf: leaf[SAMPLE : SAMPLE + 1], aux)
    if aux.kept is None:
        draw_groups(path, sample, grid=model.geometry.grid, groups=groups_of(aux.taps))
    else:
        picture_lives(path, model, aux, sample)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", help="all if none is named")
    parser.add_argument("--steps", type=int, default=600, help="of the dense model's training, the most of any")
    arguments = parser.parse_args()
    if unknown := set(arguments.methods) - set(METHODS):
        parser.error(f"no method {', '.join(sorted(unknown))}; choices: {', '.join(METHODS)}")
    FOLDER.mkdir(exist_ok=True)
    model = slim.create_model("vit", **BACKBONE)
    variables = jax.jit(model.init)(jax.random.key(0), normalised(digits()[0][:1]))
    # ViT's 0.02 is made for wide models and long training; positions and products start large enough to learn fast.
    variables = jax.tree.map(lambda leaf: 5 * leaf if leaf.ndim == 2 else leaf, variables)
    variables["params"]["pos_embed"] = 25 * variables["params"]["pos_embed"]
    dense = (model, train(model, variables, arguments.steps, 2e-3, None))
    logits = jax.jit(model.apply)(dense[1], normalised(digits()[0][:100]))
    print(f"dense: {float((logits.argmax(-1) == digits()[1][:100]).mean()):.0%} of 100 right", flush=True)
    for method in arguments.methods or METHODS:
        draw(method, dense, arguments.steps)


if __name__ == "__main__":
    main()
