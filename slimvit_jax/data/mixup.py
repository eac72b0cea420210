"""Mixup and cutmix on the device, as pure functions inside the compiled train step."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from slimvit_jax.errors import SlimError
from slimvit_jax.ops.boxes import cut_box, mirrored


@dataclass(frozen=True)
class MixupConfig:
    """mixup, cutmix: alpha of the Beta distribution, 0 turns it off; prob: of mixing a batch at all; switch_prob: of
    cutmix where both are on. mode "batch" draws once per batch, "element" once per image."""

    mixup: float = 0.8
    cutmix: float = 1.0
    prob: float = 1.0
    switch_prob: float = 0.5
    mode: str = "batch"

    def __post_init__(self) -> None:
        if self.mixup < 0 or self.cutmix < 0 or not 0 <= self.prob <= 1 or not 0 <= self.switch_prob <= 1:
            raise SlimError(f"mixup and cutmix must not be negative, prob and switch_prob in [0, 1]: {self}")
        if self.mode not in ("batch", "element"):
            raise SlimError(f"unknown mixup mode {self.mode!r}; choices: batch, element")

    @property
    def active(self) -> bool:
        return (self.mixup > 0 or self.cutmix > 0) and self.prob > 0


def smooth(labels: jax.Array, epsilon: float) -> jax.Array:
    """Label smoothing of (B, C) distributions: (1 - epsilon) labels + epsilon / C."""
    return labels * (1 - epsilon) + epsilon / labels.shape[-1]


def beta(key: jax.Array, alpha: float, shape: tuple[int, ...]) -> jax.Array:
    """Draws from Beta(alpha, alpha), float32, by its quantile function on a table of 4,097 points.

    jax.random.beta draws two gammas by rejection: loops that take seconds to compile and stall the train step.
    """
    uniform = jax.random.uniform(key, shape)
    if alpha == 1:
        return uniform
    from scipy.special import betaincinv  # here: it takes a fifth of a second to import, and few runs come by

    places = np.linspace(0, 1, 4097)
    return jnp.interp(uniform, jnp.asarray(places), jnp.asarray(betaincinv(alpha, alpha, places), jnp.float32))


def mixup_cutmix(
    key: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    config: MixupConfig | None = None,
    mask: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Mixes every image with the one at the mirrored place of the batch (timm's pairing).

    Args:
        key: a JAX random key.
        images: (B, H, W, C) float.
        labels: (B, K) float distributions.
        config: a MixupConfig; static.
        mask: (B,), 0 for rows that only fill up the batch: the others are mixed as if there were only those.
    Returns:
        images and labels of the same shapes; labels are mixed in the proportion of the pixels that each image gives.
    """
    config = config or MixupConfig()
    if not config.active:
        return images, labels
    batch, height, width, _ = images.shape
    draws = batch if config.mode == "element" else 1
    mix_key, cut_key, use_key, switch_key, box_key = jax.random.split(key, 5)
    use = jax.random.uniform(use_key, (draws,)) < config.prob
    if config.mixup > 0 and config.cutmix > 0:
        cut = jax.random.uniform(switch_key, (draws,)) < config.switch_prob
    else:
        cut = jnp.full((draws,), config.cutmix > 0)
    keep = jnp.ones((draws,))
    if config.mixup > 0:
        keep = jnp.where(cut, keep, beta(mix_key, config.mixup, (draws,)))
    inside = jnp.zeros((draws, height, width), bool)
    if config.cutmix > 0:
        share = 1 - beta(cut_key, config.cutmix, (draws,))
        inside = cut_box(box_key, share, height, width) & cut[:, None, None]
        keep = jnp.where(cut, 1 - inside.mean((1, 2)), keep)
    keep = jnp.where(use, keep, 1.0)
    blend = jnp.where(cut[:, None, None], 1.0 - inside, keep[:, None, None])  # per pixel: weight of the image itself
    blend = jnp.where(use[:, None, None], blend, 1.0)[..., None].astype(images.dtype)
    mixed = images * blend + mirrored(images, mask) * (1 - blend)
    weight = keep[:, None].astype(labels.dtype)
    return mixed, labels * weight + mirrored(labels, mask) * (1 - weight)
