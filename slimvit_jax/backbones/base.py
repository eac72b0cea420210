"""What every backbone is, whatever its layers: a Flax module with a bound method, built by `create_model`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from slimvit_jax import fresh
from slimvit_jax import losses as loss_functions
from slimvit_jax import options as option_kinds
from slimvit_jax.checked import Checked
from slimvit_jax.encoder import encode, recorded_layers
from slimvit_jax.errors import SlimError
from slimvit_jax.images import Preprocess
from slimvit_jax.losses import Targets
from slimvit_jax.named import UNNAMED, NamedModel
from slimvit_jax.options import Count, Kind, Natural, Pair
from slimvit_jax.plan import Geometry
from slimvit_jax.slimming import Slimming
from slimvit_jax.tokens import Aux, Tokens

Method = str | Slimming | None


def _read_dtype(dtype: Any) -> str:
    try:
        name = jnp.dtype(dtype).name
    except TypeError:
        name = str(dtype)
    if name not in DTYPES:
        raise ValueError(dtype)
    return name


DTYPES = ("float32", "bfloat16", "float16")
DType = Annotated[str, Kind("be a floating-point type", _read_dtype, DTYPES)]


class Backbone(Checked, kw_only=True):
    """The part of a model that `create_model` and the analysis need.

    Attributes:
      slim: the bound method; `Slimming` is the dense model.
      img_size: (height, width) in pixels.
      in_chans: channels of the images.
      num_classes: of the head; 0 for none, then the logits are the pooled features.
      distilled: a second head, for the labels of another network; logits are the mean of both heads.
      preprocess: how the images of its weights are prepared; `create_model` sets the named model's, and
        `transform_for` fits it to the model's size and channels.
      class_names: one per class, where they are known; () where not. Set by `from_pretrained` and for models of runs.
      dtype: compute type, "float32" or "bfloat16"; parameters, norms and softmax stay float32.
    """

    PASSES = frozenset({"__call__", "label_tokens"})

    #: The names of the any-size models that it makes, with the options that each fixes.
    families: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    #: Expressions over whole parameter paths of what weight decay leaves alone, beside all vectors.
    no_weight_decay: ClassVar[tuple[str, ...]] = (r".*(bias|scale|gamma)",)

    slim: Slimming
    img_size: Pair = (224, 224)
    in_chans: Count = 3
    num_classes: Natural = 1000
    distilled: bool = False
    dtype: DType = "float32"
    preprocess: Preprocess = UNNAMED
    class_names: tuple[str, ...] = ()

    def check_all(self) -> None:
        """Checks the options together, and binds the method to what they make: a clone of another size has its own."""
        options = self.normalise(self.options())
        self._set(options)
        if self.slim.geometry != (geometry := self.geometry_of(options)):
            self._set({"slim": self.slim.bind(geometry)})

    @classmethod
    def option(cls, options: dict[str, Any], name: str) -> Any:
        """An option's value, or the field's default where it is not given."""
        return options.get(name, cls.__dataclass_fields__[name].default)

    @classmethod
    def translate(cls, method: Method, options: dict[str, Any]) -> tuple[Method, dict[str, Any]]:
        """Method and options of `create_model`, other spellings of them put into ours; a dict of its own."""
        return method, dict(options)

    @classmethod
    def normalise(cls, options: dict[str, Any]) -> dict[str, Any]:
        """Keyword options in the form of the fields, checked by themselves and together.

        Raises:
          SlimError: naming the option, its value and what it may be.
        """
        return option_kinds.check(option_kinds.kinds_of(cls), options)

    @classmethod
    def geometry_of(cls, options: dict[str, Any]) -> Geometry:
        """What a method needs to know, from normalised options."""
        raise NotImplementedError

    def init(self, *arguments: Any, **keywords: Any) -> Any:
        """Flax's; notes that the method's parameters are fresh (see `fresh`)."""
        variables = super().init(*arguments, **keywords)
        fresh.note(variables.get("params", {}).get("slim", {}))
        return variables

    @property
    def geometry(self) -> Geometry:
        """Grid, depth, width, heads and prefix tokens."""
        return self.slim.bound

    # Facts that others ask for ---------------------------------------------------------------------------------------

    @classmethod
    def named(cls) -> Mapping[str, NamedModel]:
        """The models of published sizes that `create_model` knows by a name of their own."""
        return {}

    @classmethod
    def tiny(cls) -> dict[str, Any]:
        """Options of a model that computes in milliseconds, for tests and trials: a few layers on a few patches."""
        raise NotImplementedError

    @classmethod
    def seen_in(cls, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any] | None:
        """What the names and shapes of a state dict show of such a model, for error messages; None: it is another's.

        "kind", in words, "family", and the sizes that show, under the names of the options.
        """
        return None

    @property
    def layer_groups(self) -> tuple[str, ...]:
        """Expressions over whole parameter paths, for learning rates by layer: of what comes before the first layer, of
        the first layer, ..., of the last. What none matches comes after them."""
        raise NotImplementedError

    @property
    def fuse_partners(self) -> Mapping[str, str]:
        """Names of batch norms, as expressions, and the layer beside each that it can be folded into; {}: none can.

        What has some takes the option `fused`.
        """
        return {}

    def fused_parameter(self, path: tuple[str, ...], array: Array) -> Array:
        """A parameter in the form that the fused model has it in."""
        return array

    def check_images(self, shape: tuple[int, ...]) -> None:
        """Raises SlimError for images of another shape than (batch, height, width, channels) of this model."""
        expected = (*self.img_size, self.in_chans)
        if len(shape) != 4 or tuple(shape[1:]) != expected:
            takes = ", ".join(map(str, expected))
            raise SlimError(f"images of shape {tuple(shape)}; this model takes (batch, {takes}), NHWC")

    # Inference -------------------------------------------------------------------------------------------------------

    # A model is three parts, which its family makes as modules. They share the model's scope: timm's names are flat.

    def make_embedding(self) -> Any:
        """What makes `Tokens` of (images, train, mask), such as `Embedding`."""
        raise NotImplementedError

    def make_blocks(self) -> list[Any]:
        """The modules "blocks_0", "blocks_1" and so on, such as `Block`; others have a name of their own."""
        raise NotImplementedError

    def make_classifier(self) -> Any:
        """What makes logits of the last tokens, such as `Classifier`."""
        raise NotImplementedError

    def setup(self) -> None:
        self.embed = self.make_embedding()
        nn.share_scope(self, self.embed)
        self.blocks = self.make_blocks()
        self.classifier = self.make_classifier()
        nn.share_scope(self, self.classifier)

    @property
    def layers(self) -> Sequence[Any]:
        """The layers in their order, of a model that is set up."""
        return self.blocks

    def __call__(
        self,
        images: Array,
        train: bool = False,
        *,
        return_aux: bool = False,
        record_tokens: bool | Sequence[int] = False,
        scores: Array | None = None,
        mask: Array | None = None,
    ) -> Array | tuple[Array, Aux]:
        """Classify images.

        Args:
          images: (B, H, W, C) floats, prepared as the weights expect (`transform_for`).
          train: the training path: dropout, stochastic depth and the method's training form; needs rngs={"dropout"}.
          return_aux: also return an `Aux`.
          record_tokens: 1-based layers whose features `grid_features` is to have; True: all layers, and their patch
            tokens in `aux.taps["tokens"]` as they are held.
          mask: (B,), 0 for rows that only fill up a training batch: batch norms and MixToken leave them out.
          scores: (B, N) in raster order, used by the method in place of its own prediction (random lives, an oracle).

        Returns:
          (B, num_classes) float32 logits, or (logits, aux).

        Raises:
          SlimError: for images of another shape, layers that there are not, scores where nothing is ranked by them.
        """
        self.check_images(images.shape)
        recorded = recorded_layers(record_tokens, self.geometry.depth)
        path = train or self.is_initializing()  # so that init creates the parameters that only training uses
        tokens = self.embed(images, train, mask)
        if scores is not None:
            if self.geometry.subsamples is not None:
                raise SlimError(f"scores: with {type(self).__name__} there is nothing to rank by them")
            if scores.shape != tokens.origin.shape:
                raise SlimError(f"scores of shape {scores.shape}; expected one per patch, {tokens.origin.shape}")
            tokens = tokens.remember(given_scores=scores.astype(jnp.float32))
        encoded = encode(self.layers, self.slim, tokens, path, recorded, record_tokens is True)
        norm, normed, logits, taps = self.read(encoded.tokens, train)
        return (logits, encoded.aux(self.slim, normed, norm, taps, path)) if return_aux else logits

    def read(self, tokens: Tokens, train: bool) -> tuple[Callable[[Array], Array], Tokens, Array, dict[str, Array]]:
        """The last norm, the tokens of the last layer normalised, the logits, and taps."""
        norm = self.classifier.normalised
        normed = tokens.replace(x=norm(tokens.x))
        return norm, normed, *self.classifier(tokens, normed, self.slim, train)

    def flops_parts(self) -> tuple[int, tuple[int, ...], int]:
        """Multiply-adds at inference of the patch embedding, of every layer, and of the heads."""
        plan, prefix = self.slim.plan, self.geometry.prefix_tokens
        counts = zip(self.layer_costs(), plan.attention, plan.mlp, strict=True)
        layers = tuple(cost(prefix + attention, prefix + mlp) for cost, attention, mlp in counts)
        embed = self.make_embedding().flops(self.img_size, self.in_chans)
        return embed, layers, self.make_classifier().flops(plan.mlp[-1], prefix)

    def layer_costs(self) -> list[Callable[[int, int], int]]:
        """Per layer, the multiply-adds on so many tokens in the attention and in the MLP."""
        return [block.flops for block in self.make_blocks()]

    # Training --------------------------------------------------------------------------------------------------------

    def losses(self, logits: Array, aux: Aux, targets: Targets) -> dict[str, Array]:
        """The training losses by name, unweighted, (B,) float32 each: their `losses.mean(..., mask)` is what trains.

        Those of the method (`Slimming.loss_terms`), and those of what only the backbone has. With `targets.labeller`
        the class head learns the labels and the heads for distillation the labeller's most probable class:
        "hard_distillation", DeiT's and LeViT's. Given `targets.teacher`, any method learns its logits, "distillation",
        also one that has no such loss itself.

        Args:
          logits, aux: of the training path.
          targets: what they are compared with.

        Raises:
          SlimError: a loss of the method is not one value per image.
        """
        losses = self.slim.loss_terms(
            logits, aux, targets.replace(labels=self.mixed(targets.labels, aux, targets.mask))
        )
        if targets.teacher is not None and "distillation" not in losses:
            losses["distillation"] = loss_functions.distillation(logits, targets.teacher[0])
        heads = [aux.taps[name] for name in ("dist_logits", "class_dist_logits") if name in aux.taps]
        if targets.labeller is not None and heads:
            hard = self.mixed(loss_functions.hard_labels(targets.labeller.logits), aux, targets.mask)
            losses["hard_distillation"] = jnp.stack([loss_functions.cross_entropy(h, hard) for h in heads]).mean(axis=0)
        for name, value in losses.items():
            if value.shape != targets.labels.shape[:1]:
                raise SlimError(
                    f"method {self.slim.method!r}: loss {name!r} of shape {value.shape} must be one value for each of"
                    f" the {len(targets.labels)} images"
                )
        return losses

    def loss_weights(self, labelled: bool = False) -> dict[str, float]:
        """The default weight of every loss that `losses` gives; `labelled`: a labeller gives further labels."""
        own = {"hard_distillation": 1.0} if labelled and self.distilled and self.num_classes else {}
        return {**self.slim.loss_weights, **own}

    def check_teacher(self, teacher: Any) -> None:
        """Raises SlimError where the training losses cannot compare with this dense model."""
        self.slim.check_teacher(teacher.geometry)

    def mixed(self, labels: Array, aux: Aux, mask: Array | None = None) -> Array:
        """The (B, C) labels of what the model made of its images: others where it mixed them in training.

        `mask` is of `Targets`: images that do not count are not mixed into others.
        """
        return labels

    @property
    def frozen(self) -> tuple[str, ...]:
        """Expressions over whole parameter paths: what learns only where a stage's config names it itself."""
        return ()

    @property
    def training_only(self) -> tuple[str, ...]:
        """Expressions over whole parameter paths of what only training reads."""
        return self.slim.training_only

    # Official weights ------------------------------------------------------------------------------------------------

    def from_official(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """A state dict under the names of a release, renamed to ours; others unchanged."""
        return self.slim.from_official(state)

    def to_official(self, state: dict[str, Any]) -> dict[str, Any]:
        """The inverse of `from_official` for a state dict of this model."""
        return self.slim.to_official(state)


def renamed(options: dict[str, Any], release: str, ours: str) -> None:
    """Moves the value of a release's keyword to our name for it; a SlimError where both are given."""
    if release in options:
        if ours in options:
            raise SlimError(f"{release} and {ours} are the same option; give one of them")
        options[ours] = options.pop(release)
