"""A fixed network whose predictions are further labels: hard ones for a distillation head, dense ones for the tokens.

Not the teacher of a method, which is the dense model of the same shape. A config names a model of this library and its
weights (`config.labeller`). Any other network, such as the convolutional ones of DeiT, LeViT and SiT, is a function
given to `training.run(..., labeller=)`, which JAX traces into the train step: a flax module's `apply` with its
variables, or a network of another framework behind `jax.pure_callback`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from slimvit_jax.build import create_model, transform_for
from slimvit_jax.convert import load
from slimvit_jax.errors import SlimError
from slimvit_jax.losses import Predictions
from slimvit_jax.models import NAMED, weights_path
from slimvit_jax.slimming import Slimming

#: images (B, H, W, C), prepared as the student's, to (B, classes) logits; or to those and (B, rows, columns, classes).
Function = Callable[[Array], Any]


@dataclasses.dataclass(frozen=True)
class Labeller:
    """What a stage's labels come from.

    Attributes:
      source: a model of this library, or a function of images alone.
      dense: labels for the student's patches are wanted.
      grid: the student's, to which labels of another grid are resampled.
      classes: the student's; 0 for not checked.
      gain, shift: per channel, from the student's normalisation of pixels to the labeller's.
    """

    source: Any
    dense: bool
    grid: tuple[int, int]
    classes: int = 0
    gain: tuple[float, ...] = (1.0,)
    shift: tuple[float, ...] = (0.0,)

    @property
    def is_model(self) -> bool:
        """Whether there are variables to load."""
        return hasattr(self.source, "geometry")

    def __call__(self, variables: Any, images: Array) -> Predictions:
        """(B, classes) logits and, where dense, (B, N, classes) logits of the patches in raster order; no gradient.

        Args:
          variables: of the model; anything for a function.
          images: (B, H, W, C) as the student sees them.

        Raises:
          SlimError: a function that gives something else.
        """
        images = images * jnp.asarray(self.gain, images.dtype) + jnp.asarray(self.shift, images.dtype)
        tokens: Any = None
        if not self.is_model:
            found = self.source(images)
            logits, tokens = found if isinstance(found, (tuple, list)) else (found, None)
        elif self.dense:
            logits, tokens = self.source.apply(variables, images, method="label_tokens")
            tokens = tokens.reshape(len(images), *self.source.geometry.grid, -1)
        else:
            logits = self.source.apply(variables, images)
        if jnp.ndim(logits) != 2 or (tokens is not None and jnp.ndim(tokens) != 4):
            raise SlimError("labeller: it must give (B, classes) logits, or them and (B, rows, columns, classes)")
        if self.classes and logits.shape[-1] != self.classes:
            raise SlimError(f"labeller: it gives {logits.shape[-1]} classes, the student has {self.classes}")
        if not self.dense or tokens is None:
            return jax.lax.stop_gradient(Predictions(logits))
        shape = (len(images), *self.grid, tokens.shape[-1])
        tokens = tokens if tokens.shape == shape else jax.image.resize(tokens, shape, "linear")
        return jax.lax.stop_gradient(Predictions(logits, tokens.reshape(len(images), -1, tokens.shape[-1])))


def learns_labels(model: Any) -> bool:
    """Whether a model in training has a use for a labeller: a head for distillation, or patches to label."""
    return model.distilled or getattr(model, "token_labelling", False)


def build_labeller(
    config: Any, model: Any, preprocess: Any, function: Function | None = None, others: Sequence[Any] = ()
) -> Labeller | None:
    """The labeller of a stage that trains `model`; None where there is none, or only `others` have a use for it.

    Args:
      config: validated.
      model: the student.
      preprocess: of the student's images.
      function: in place of config.labeller.
      others: the models of the other stages.

    Raises:
      SlimError: no stage has a use for labels, or the labeller has other classes or takes other images.
    """
    fields = config.labeller
    if function is None and not fields.name:
        return None
    if function is not None and fields.name:
        raise SlimError(f"config.labeller.name={fields.name!r}, and a labeller function is given too; one can label")
    if not learns_labels(model):
        if any(learns_labels(other) for other in others):
            return None
        raise SlimError(
            f"config.labeller: model {config.model.name!r} has no use for labels; it needs a distillation head"
            " (distilled) or LV-ViT's token_labelling=True"
        )
    dense = bool(getattr(model, "token_labelling", False))
    if function is not None:
        return Labeller(function, dense, model.geometry.grid, model.num_classes)
    options = {"img_size": model.img_size, "in_chans": model.in_chans, "num_classes": model.num_classes}
    source = create_model(fields.name, Slimming(), **options | fields.options.to_dict())
    for name in options:
        theirs, ours = getattr(source, name), getattr(model, name)
        if theirs != ours:
            raise SlimError(f"config.labeller: {name}={theirs}, but the student has {ours}")
    if dense and not hasattr(source, "label_tokens"):
        raise SlimError(f"config.labeller: {fields.name!r} cannot label single patches; a ViT or an LV-ViT can")
    mean, std = (np.asarray(v, np.float64) for v in (preprocess.mean, preprocess.std))
    their_mean, their_std = mean, std
    if fields.name in NAMED:
        own = transform_for(source)
        their_mean, their_std = np.asarray(own.mean), np.asarray(own.std)
    gain, shift = np.broadcast_arrays(std / their_std, (mean - their_mean) / their_std)
    affine = {"gain": tuple(gain.tolist()), "shift": tuple(shift.tolist())}
    return Labeller(source, dense, model.geometry.grid, model.num_classes, **affine)


def labeller_variables(config: Any, labeller: Labeller | None) -> Mapping[str, Any]:
    """The labeller's weights; {} for none and for a function.

    Raises:
      SlimError: no weights are named: labels of an untrained network would teach nothing.
    """
    if labeller is None or not labeller.is_model:
        return {}
    if not config.labeller.path:
        raise SlimError(f"config.labeller.path is empty: labels of an untrained {config.labeller.name!r} teach nothing")
    path = weights_path(config.labeller.path, config.labeller.name, "labeller.path")
    return load(labeller.source, path, **config.labeller.load.to_dict())
