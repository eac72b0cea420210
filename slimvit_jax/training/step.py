"""The state of training and its one step, a pure function that receives its losses."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import Array

from slimvit_jax import losses as loss_functions
from slimvit_jax.data.mixup import MixupConfig, mixup_cutmix, smooth
from slimvit_jax.losses import Targets
from slimvit_jax.training import optim

Losses = Callable[..., Mapping[str, Array]]
Batch = Mapping[str, Array]


class TrainState(flax.struct.PyTreeNode):
    """Everything a stage carries from step to step.

    Attributes:
      step: () int32, steps of this stage done.
      params: the parameters that learn.
      frozen: the parameters that do not; they have no gradient, no optimiser state and no average.
      batch_stats: running statistics of batch norms; {} where there are none.
      opt_state: of `params` alone.
      ema: running average of `params`; {} where the stage keeps none.
      teacher: variables of the frozen dense model that a method's losses compare with; {} where they do not.
      labeller: variables of the fixed network that gives further labels; {} where none does.
    """

    step: Array
    params: Any
    frozen: Any
    batch_stats: Any
    opt_state: Any
    ema: Any
    teacher: Any
    labeller: Any = flax.struct.field(default_factory=dict)

    @property
    def variables(self) -> dict[str, Any]:
        """The model's variables as learned; the average in place of the learning parameters where one is kept."""
        return join(self.ema or self.params, self.frozen, self.batch_stats)


def join(params: Any, frozen: Any, batch_stats: Any) -> dict[str, Any]:
    """One variables dict from the parts."""
    variables = {"params": optim.merge(params, frozen)}
    return {**variables, "batch_stats": batch_stats} if batch_stats else variables


def new_state(
    variables: Mapping[str, Any],
    trainable: Any,
    optimizer: Any,
    ema: bool,
    teacher: Any = None,
    labeller: Any = None,
) -> TrainState:
    """The state at a stage's first step. `optimizer` maps the learning parameters to a GradientTransformation."""
    params, frozen = optim.select(variables["params"], trainable)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        frozen=frozen,
        batch_stats=dict(variables.get("batch_stats", {})),
        opt_state=optimizer.init(params),
        ema=jax.tree.map(jnp.copy, params) if ema else {},
        teacher=teacher or {},
        labeller=labeller or {},
    )


class StepOptions(flax.struct.PyTreeNode):
    """What a step does beside forward, backward and update; static."""

    loss_weights: Mapping[str, float] = flax.struct.field(pytree_node=False)
    label_smoothing: float = flax.struct.field(pytree_node=False, default=0.0)
    mixup: MixupConfig | None = flax.struct.field(pytree_node=False, default=None)
    accumulate: int = flax.struct.field(pytree_node=False, default=1)
    ema: float = flax.struct.field(pytree_node=False, default=0.0)
    update_statistics: bool = flax.struct.field(pytree_node=False, default=True)


def make_train_step(
    model: Any,
    losses: Losses,
    optimizer: optax.GradientTransformation,
    rate: optim.Schedule,
    key: Array,
    options: StepOptions,
    teacher: Any = None,
    labeller: Any = None,
    second: Sequence[Any] = (),
) -> Callable[[TrainState, Batch], tuple[TrainState, Array]]:
    """The step, to be compiled by the caller.

    Args:
      model: whose `apply(..., train=True, return_aux=True)` gives (logits, aux).
      losses: (logits, aux, Targets) -> unweighted losses (B,) by name: `model.losses`.
      optimizer, rate: of `optim`; `rate` is only reported.
      key: of the stage; the step number is folded in, so that a resumed run draws what it would have drawn.
      options: see there.
      teacher: a dense model applied with `state.teacher`, or None.
      labeller: (state.labeller, images) -> Predictions (`Labeller`), or None.
      second: models with the parameters of `model`. Every step draws one and applies it too: `Targets.second`.

    Returns:
      (state, batch) -> (next state, metrics (K,) float32 in the order of `metric_names`). The batch is
      {"image": (B, H, W, C) float32, "label": (B,) int32, "mask": (B,) float32}; rows of mask 0 count nowhere: the
      step is that of the batch without them, in losses, gradients, batch statistics and mixing.
    """

    def forward(model: Any, variables: Any, images: Array, mask: Array, key: Array) -> Any:
        how: dict[str, Any] = {"train": True, "return_aux": True, "mutable": ["batch_stats"]}
        return model.apply(variables, images, mask=mask, rngs={"dropout": key}, **how)

    def second_pass(variables: Any, images: Array, mask: Array, key: Array) -> tuple[Array, Array]:
        """Logits and class token of the model drawn, which drops and mixes what the first pass does."""

        def run(other: Any) -> tuple[Array, Array]:
            (logits, aux), _ = forward(other, variables, images, mask, key)
            return logits, aux.features[:, 0]

        drawn = jax.random.randint(jax.random.fold_in(key, 1), (), 0, len(second))
        return jax.lax.switch(drawn, [functools.partial(run, other) for other in second])

    def loss_of(params: Any, state: TrainState, images: Array, labels: Array, mask: Array, key: Array) -> Any:
        """Sums over the images that count, not means: one division at the end serves all parts of a batch, and how many
        count is then known from the same all-reduce as the gradient."""
        # `state` is not differentiated: the backward pass stops where no learning parameter lies below
        variables = join(params, state.frozen, state.batch_stats)
        reference = None
        if teacher is not None:
            reference = jax.lax.stop_gradient(teacher.apply(state.teacher, images, return_aux=True, record_tokens=True))
        (logits, aux), updates = forward(model, variables, images, mask, key)
        says = None if labeller is None else labeller(state.labeller, images)
        again = second_pass(variables, images, mask, key) if second else None
        found = losses(logits, aux, Targets(labels, mask, reference, says, again))
        sums = {name: loss_functions.total(value, mask) for name, value in found.items()}
        total = sum(options.loss_weights[name] * value for name, value in sums.items())
        hits = loss_functions.total((logits.argmax(-1) == labels.argmax(-1)).astype(jnp.float32), mask)
        report = [total, hits, *(sums[name] for name in sorted(sums))]
        statistics = updates.get("batch_stats", {}) if options.update_statistics else state.batch_stats
        return total, (jnp.stack([jnp.asarray(v, jnp.float32) for v in report]), statistics)

    gradient = jax.value_and_grad(loss_of, has_aux=True)

    def one_pass(state: TrainState, images: Array, labels: Array, mask: Array, key: Array) -> Any:
        (_, (report, statistics)), grads = gradient(state.params, state, images, labels, mask, key)
        return grads, report, statistics

    def many_passes(state: TrainState, images: Array, labels: Array, mask: Array, key: Array) -> Any:
        # micro-batch j takes every k-th row, so that rows stay on the device they lie on
        k = options.accumulate
        cut = lambda a: a.reshape(a.shape[0] // k, k, *a.shape[1:]).swapaxes(0, 1)

        def body(carry: Any, inputs: Any) -> Any:
            grads, report, statistics = carry
            (part_images, part_labels, part_mask), index = inputs
            current = state.replace(batch_stats=statistics)
            key_of_part = jax.random.fold_in(key, index)
            more, part, statistics = one_pass(current, part_images, part_labels, part_mask, key_of_part)
            return (jax.tree.map(jnp.add, grads, more), report + part, statistics), None

        parts = (cut(images), cut(labels), cut(mask))
        shapes = jax.eval_shape(lambda: one_pass(state, parts[0][0], parts[1][0], parts[2][0], key))
        zero = lambda tree: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), tree)
        start = (zero(shapes[0]), zero(shapes[1]), state.batch_stats)
        (grads, report, statistics), _ = jax.lax.scan(body, start, (parts, jnp.arange(k)))
        return grads, report, statistics

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Array]:
        mix_key, key_of_step = jax.random.split(jax.random.fold_in(key, state.step))
        images, mask = batch["image"], batch["mask"]
        labels = jax.nn.one_hot(batch["label"], model.num_classes)
        if options.mixup is not None:
            images, labels = mixup_cutmix(mix_key, images, labels, options.mixup, mask)
        if options.label_smoothing:
            labels = smooth(labels, options.label_smoothing)
        compute = one_pass if options.accumulate == 1 else many_passes
        grads, report, statistics = compute(state, images, labels, mask, key_of_step)
        counted = loss_functions.count(mask, mask)
        grads, report = jax.tree.map(lambda summed: summed / counted, (grads, report))
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if options.ema:
            # the average of the first steps would otherwise be mostly the initial weights
            decay = jnp.minimum(options.ema, (1.0 + state.step) / (10.0 + state.step))
            ema = jax.tree.map(lambda e, p: decay * e + (1.0 - decay) * p, ema, params)
        extra = jnp.stack([optax.global_norm(grads), jnp.asarray(rate(state.step), jnp.float32)])
        state = state.replace(step=state.step + 1, params=params, batch_stats=statistics, opt_state=opt_state, ema=ema)
        return state, jnp.concatenate([report, extra])

    return train_step


def metric_names(loss_weights: Mapping[str, float]) -> tuple[str, ...]:
    """The names of what a step reports, in its order."""
    return ("loss", "accuracy", *(f"loss_{name}" for name in sorted(loss_weights)), "grad_norm", "lr")
