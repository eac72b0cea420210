"""`Slimming`: the do-nothing method. A slimming method is a subclass that overrides a few hooks.

The encoder (encoder.py) calls the hooks in a fixed order for every layer, numbered 1..T as in the papers:

    tokens = method.before_block(tokens, layer, train)
    tokens, probe = method.attend(tokens, layer, block, train)
    tokens = method.after_attention(tokens, layer, probe, train)
    tokens = method.after_block(tokens.add(block.feed_forward(tokens, train)), layer, train)

and once, at the end, `tokens = method.finish(tokens, train)`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

from jax import Array

from slimvit_jax import losses as loss_functions
from slimvit_jax.checked import Checked
from slimvit_jax.errors import SlimError
from slimvit_jax.facts import Facts
from slimvit_jax.losses import Targets
from slimvit_jax.plan import Geometry, Plan
from slimvit_jax.tokens import Aux, Tokens

if TYPE_CHECKING:
    from slimvit_jax.block import Block

Probe = Mapping[str, Array]


class Slimming(Checked, kw_only=True):
    """The plain vision transformer: keeps every token.

    A subclass's options are its fields: the annotation of each says what it may be (see `options`), and is checked when
    the method is made.

    Attributes:
      geometry: the backbone this method is bound to; set by `create_model` through `bind`.
    """

    PASSES = frozenset({"start", "before_block", "after_attention", "after_block", "finish", "pooling_weights"})

    method: ClassVar[str] = "dense"
    #: What tables say of it.
    facts: ClassVar[Facts] = Facts()
    #: Tokens are merged, so that the original index of a token is not defined and `aux.kept` is None.
    merges: ClassVar[bool] = False
    #: Merges, and drops some tokens besides: owner -1 in `tokens.memory`, see `grid.Trail`.
    prunes: ClassVar[bool] = False
    #: Reads the class token itself, so that a model without one is refused. (Ranking by its attention is no such need.)
    needs_class_token: ClassVar[bool] = False
    #: Inference with keep_rate=1 computes what the dense model computes, up to rounding.
    keep_all_is_dense: ClassVar[bool] = True
    #: The head reads the mean of all patch tokens, normalised after the mean, whatever the model's own pooling.
    pools_patches: ClassVar[bool] = False
    #: Training masks or weighs patches and removes none.
    trains_on_all: ClassVar[bool] = False
    #: Runs on backbones that subsample their grid of patches themselves.
    runs_on_pyramids: ClassVar[bool] = False
    #: Options that say how many tokens are kept in place of `keep_rate`, and win over it where they are given.
    in_place_of_keep_rate: ClassVar[tuple[str, ...]] = ()
    #: Weights trained at one budget can run at others; False where parameters have the shapes of a budget.
    any_budget: ClassVar[bool] = True
    #: What `aux.scores` are, in a word or two for pictures.
    score_name: ClassVar[str] = "score"
    #: The scores are lives: the last layer that computes a patch. Its weight in every layer follows from them.
    predicts_lives: ClassVar[bool] = False
    #: The training losses compare with a frozen dense model.
    needs_teacher: ClassVar[bool] = False
    #: The method's default weight of each loss.
    loss_weights: ClassVar[Mapping[str, float]] = {"classification": 1.0}
    #: Other learning rates for the method's parameters, relative to the backbone's.
    learning_rate_scale: ClassVar[float] = 1.0
    #: On top of that, a factor for the parameters whose whole path ("slim/rtsm_2/norm1/scale") an expression matches.
    parameter_rates: ClassVar[Mapping[str, float]] = {}

    #: Options under which the method serves a dense model's weights as they are, one set each; () where it must learn.
    untrained: ClassVar[tuple[Mapping[str, Any], ...]] = ()

    #: Expressions over whole parameter paths of what inference never reads, such as "slim/rtsm_2/norm1/scale".
    training_only: ClassVar[tuple[str, ...]] = ()

    geometry: Geometry | None = None

    def check_all(self) -> None:
        self.check_options()
        if self.geometry is not None:
            if self.geometry.subsamples is not None and not (self.method == "dense" or self.runs_on_pyramids):
                raise SlimError(
                    f"method {self.method!r} cannot run on this backbone: it subsamples the grid of patches between its"
                    " stages and learns a value for every distance, so all patches must be there, at their places"
                )
            self.check_geometry(self.geometry)
            self.check_plan()

    # Options -----------------------------------------------------------------------------------------------------

    def check_options(self) -> None:
        """Raises SlimError for options that do not go together whatever the backbone; each is of its kind already."""

    def check_geometry(self, geometry: Geometry) -> None:
        """Raises SlimError for options that do not fit this backbone."""
        if self.needs_class_token and not geometry.class_token:
            raise SlimError(f"method {self.method!r} reads the class token, but this model has no class token")

    def check_plan(self) -> None:
        """Raises SlimError for options that do not fit the token counts, all others being right."""

    def check_teacher(self, teacher: Geometry) -> None:
        """Raises SlimError where `needs_teacher` and the losses cannot compare with a dense model of this geometry."""

    def bind(self, geometry: Geometry) -> Self:  # type: ignore[override]  # modules are applied, never bound to variables
        """The same method for a given backbone, its options checked against it."""
        return self.clone(geometry=geometry)

    @property
    def bound(self) -> Geometry:
        """The geometry.

        Raises:
          SlimError: before `bind`.
        """
        if self.geometry is None:
            raise SlimError(f"method {self.method!r} is not bound to a backbone yet; create_model does that")
        return self.geometry

    # Token counts ------------------------------------------------------------------------------------------------

    @property
    def plan(self) -> Plan:
        """Patch tokens per layer at inference."""
        return self.bound.dense_plan

    @property
    def train_plan(self) -> Plan:
        """Patch tokens per layer while training; the inference plan, or all of them with `trains_on_all`."""
        return self.bound.dense_plan if self.trains_on_all else self.plan

    @property
    def rejoins_at(self) -> int | None:
        """1-based layer in front of which all patches that were dropped come back; None: never."""
        return None

    def at_counts(self, counts: Sequence[int]) -> dict[str, Any] | None:
        """Options, on top of the present ones, by which counts[t - 1] patches are left of layer t.

        Args:
          counts: one a layer, never growing, each at least `fewest`.

        Returns:
          Keywords of the method's class; None where it cannot be told how many to leave in every layer.
        """
        return None

    def fewest(self, layer: int, patches: int) -> int:
        """How few of the patches that a 1-based layer takes in `at_counts` can have it leave; all: it drops none."""
        return patches

    @property
    def grid_fill(self) -> str:
        """What a patch that was dropped has in `grid_features`: `grid.Trail.fill`."""
        return "last"

    def extra_flops(self) -> dict[int, int]:
        """Multiply-adds that the method adds at inference, by 1-based layer."""
        return {}

    def paper_flops(self) -> dict[int, int] | None:
        """`extra_flops` as the method's paper counts them, where that differs; None where it does not."""
        return None

    @property
    def score_range(self) -> tuple[float, float] | None:
        """Least and greatest score that means something, to which pictures clamp; None: as they come."""
        return None

    @property
    def trained_rates(self) -> tuple[float, ...]:
        """Keep rates that training draws from for every image; () where there is one budget for all."""
        return ()

    @property
    def second_passes(self) -> tuple[Mapping[str, Any], ...]:
        """Options with which training applies the same weights a second time: every step draws one of them.

        What comes of it is `Targets.second`. (): one pass.
        """
        return ()

    # Hooks -------------------------------------------------------------------------------------------------------

    def needs(self, layer: int, train: bool) -> tuple[str, ...]:
        """What `after_attention` wants to see of this layer's attention.

        Of "class_attention" (B, H, P + n), the softmaxed row of the class token, which costs one query row; without
        class token it is "received". "received" (B, H, P + n) is the attention that each token receives, the mean over
        all queries: the importance score of learned token pruning (Kim et al. 2022, eq. 2; PoWER-BERT, Goyal et al.
        2020, has the sum). It adds 1 / 2d of the additions that the attention has itself; only a fused kernel is done
        without there. Further "keys" and "values" (B, P + n, H, D / H); "inputs" (B, P + n, D), the normalised tokens
        that the attention reads; "attention" (B, H, P + n, P + n), the whole matrix, in memory at once. All of them are
        without a policy of training (`Tokens.policy`), so that what it hides is seen too.
        """
        return ()

    def start(self, tokens: Tokens, train: bool) -> Tokens:
        """Before the first layer."""
        return tokens

    def before_block(self, tokens: Tokens, layer: int, train: bool) -> Tokens:
        """Before the layer's attention."""
        return tokens

    def attend(self, tokens: Tokens, layer: int, block: Block, train: bool) -> tuple[Tokens, Probe]:
        """The layer's attention and its residual: the tokens after it, and what `needs` names.

        A method that changes the attention itself overrides this, out of `block.attention_map`, `attention_values`
        and `attention_branch`; all others leave it alone.
        """
        return block.attend(tokens, self.needs(layer, train), train)

    def after_attention(self, tokens: Tokens, layer: int, probe: Probe, train: bool) -> Tokens:
        """Between the layer's attention (residual added) and its MLP."""
        return tokens

    def after_block(self, tokens: Tokens, layer: int, train: bool) -> Tokens:
        """After the layer's MLP (residual added)."""
        return tokens

    def finish(self, tokens: Tokens, train: bool) -> Tokens:
        """After the last layer, before the final norm."""
        return tokens

    def pooling_weights(self, tokens: Tokens, train: bool) -> Array | None:
        """(B, n) weights of the patches in average pooling, summing to 1; None for the plain mean."""
        if tokens.size is None:
            return None
        return tokens.patch_sizes / tokens.patch_sizes.sum(axis=1, keepdims=True)

    # Training ----------------------------------------------------------------------------------------------------

    def loss_terms(self, logits: Array, aux: Aux, targets: Targets) -> dict[str, Array]:
        """What the method learns by: losses by name, unweighted, one float32 value (B,) per image.

        A hook for `Backbone.losses`, which adds what holds for every method and is what trains: do not call it
        yourself. Nothing here is averaged over images; where a loss is of the batch as a whole, leave out the images
        that do not count (`losses.mean(..., targets.mask)`) and give every image its value (`losses.of_the_batch`).

        Args:
          logits: (B, C) of the training path.
          aux: of the same call.
          targets: labels already mixed as the backbone mixed its images; `targets.teacher` where `needs_teacher`.
        """
        return {"classification": loss_functions.classification(logits, aux.taps, targets)}

    # Official weights --------------------------------------------------------------------------------------------

    def from_official(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """A state dict under the names of the method's release, renamed to timm's; others unchanged."""
        return state

    def to_official(self, state: dict[str, Any]) -> dict[str, Any]:
        """The inverse of `from_official` for a state dict of this model."""
        return state
