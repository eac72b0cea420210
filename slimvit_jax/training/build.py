"""From a config to models, data and stages."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from slimvit_jax import data
from slimvit_jax.backbones.base import Backbone
from slimvit_jax.build import assemble, create_from, transform_for
from slimvit_jax.convert import load
from slimvit_jax.data.mixup import MixupConfig
from slimvit_jax.errors import SlimError
from slimvit_jax.images import Preprocess
from slimvit_jax.inference.memory import check_program
from slimvit_jax.methods import METHODS
from slimvit_jax.models import weights_path
from slimvit_jax.slimming import Slimming
from slimvit_jax.training import labeller as labelling
from slimvit_jax.training import optim, step
from slimvit_jax.training.devices import check_batch, state_shardings


def build_model(config: Any, slimmed: bool = True, stage: str = "", keep_rate: Any = None) -> Any:
    """The config's model.

    Args:
      config: validated.
      slimmed: with the method; else the dense model.
      stage: apply this stage's model_options and method_options too.
      keep_rate: in place of the config's.
    """
    options, own = config.model.options.to_dict(), config.method.options.to_dict()
    if stage:
        options |= config.stages[stage].model_options.to_dict()
        own |= config.stages[stage].method_options.to_dict()
    if not slimmed or not config.method.name:
        # `Slimming()`, not the method that a name may imply
        return prepared(config, assemble(config.model.name, Slimming(), options))
    if keep_rate is not None:
        own = at_keep_rate(config.method.name, own, keep_rate)
    return prepared(config, create_from(config.model.name, config.method.name, options, own))


def prepared(config: Any, model: Backbone) -> Backbone:
    """The model with what the config says about the preparation of its images."""
    given = {key: value for key, value in config.preprocess.to_dict().items() if value}
    return model.clone(preprocess=model.preprocess.replace(**given)) if given else model


def at_keep_rate(method: str, options: Mapping[str, Any], keep_rate: Any) -> dict[str, Any]:
    """A method's options with this keep rate, without those that would win over it."""
    fixed = METHODS[method].in_place_of_keep_rate if method in METHODS else ()
    return {name: value for name, value in options.items() if name not in fixed} | {"keep_rate": keep_rate}


def build_teacher(config: Any) -> Any:
    """The dense model that methods with a teacher compare with."""
    options = config.model.options.to_dict() | config.teacher.options.to_dict()
    return assemble(config.model.name, Slimming(), options)


def build_preprocess(config: Any) -> Preprocess:
    """How images are prepared: the model's way, with the config's fields on top."""
    return transform_for(build_model(config, slimmed=False))


def build_source(config: Any, split: str) -> data.Source:
    """The images of a split, checked against the model's number of classes where the config gives one."""
    fields = config.data
    source = data.open_source(fields.name, split, fields.data_dir or None, **fields.options.to_dict())
    given = config.model.options.get("num_classes", source.num_classes)
    if given != source.num_classes:
        raise SlimError(
            f"data {fields.name!r} has {source.num_classes} classes, but config.model.options.num_classes is {given!r};"
            " leave it out, and the model gets as many as the data"
        )
    return source


def build_sources(config: Any) -> tuple[Any, data.Source, data.Source]:
    """The config, with the data's number of classes where it gives none, and its training and evaluation images.

    Raises:
      SlimError: also where the two splits differ in their classes.
    """
    train, held_out = (build_source(config, split) for split in (config.data.train_split, config.data.eval_split))
    if train.class_names != held_out.class_names:
        raise SlimError(
            f"data {train.name!r}: {train.split!r} has {train.num_classes} classes and {held_out.split!r}"
            f" {held_out.num_classes}, or they differ in their names"
        )
    if "num_classes" not in config.model.options and build_model(config, False).num_classes != train.num_classes:
        config = copy.deepcopy(config)
        config.model.options.num_classes = train.num_classes
    return config, train, held_out


def build_augment(config: Any, stage: Any) -> data.Augment:
    """The stage's augmentation."""
    if not stage.augment:
        return data.Augment()
    fields = config.augment.to_dict()
    return data.Augment(**fields | {key: fields[key] or None for key in ("randaugment", "interpolation")})


def train_data(config: Any, stage: Any, index: int, source: data.Source) -> data.TrainIterator:
    """Endless training batches of stage number `index`; every stage shuffles by its own seed."""
    fields = config.data
    return data.train_iterator(
        source,
        preprocess=build_preprocess(config),
        augment=build_augment(config, stage),
        seed=config.seed * 1000 + index,
        batch_size=fields.batch_size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        num_workers=fields.num_workers,
        repeats=fields.repeats,
        max_bad=fields.max_bad or None,
    )


def eval_data(config: Any, source: data.Source) -> Any:
    """Batches of the evaluation split, `source`, in which every image counts once."""
    return data.eval_batches(
        source,
        preprocess=build_preprocess(config),
        batch_size=config.eval.batch_size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        num_workers=config.data.num_workers,
        multiple_of=jax.local_device_count(),
    )


def init_variables(model: Any, seed: int) -> Any:
    """Fresh variables, compiled so that the forward pass that shapes them is never run."""
    return _initialiser(model)(jax.random.key(seed))


@functools.lru_cache(maxsize=16)
def _initialiser(model: Any) -> Any:
    """Key -> variables. Equal models share it: a stage asks for their shapes several times, and tracing takes long."""
    image = np.zeros((1, *model.img_size, model.in_chans), np.float32)
    return jax.jit(lambda key: model.init(key, image))


def start_path(config: Any) -> str:
    """Where the weights are that training starts from; "" for fresh ones."""
    return weights_path(config.init.path, config.model.name, "init.path")


def start_variables(config: Any, model: Any) -> Any:
    """The weights training starts from: those of `start_path`, or fresh ones."""
    path = start_path(config)
    if not path:
        return init_variables(model, config.seed)
    options = config.init.options.to_dict()
    if not config.init.fresh_method:
        loaded = load(model, path, **options)
        # with `inference` among the options they lack what only training reads
        return adopt(loaded, init_variables(model, config.seed)) if options.get("inference") else loaded
    dense = build_model(config, slimmed=False)
    return adopt(load(dense, path, **options), init_variables(model, config.seed))


def adopt(variables: Mapping[str, Any], fresh: Mapping[str, Any]) -> dict[str, Any]:
    """`fresh` with every leaf that `variables` has too: a dense model's weights under a method's new parameters."""
    adopted = {}
    for collection, tree in fresh.items():
        have = optim.flat(variables.get(collection, {}))
        adopted[collection] = optim.nested({path: have.get(path, leaf) for path, leaf in optim.flat(tree).items()})
    return adopted


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage ready to run: what is compiled and what it starts from."""

    name: str
    index: int
    config: Any
    model: Any
    teacher: Any
    steps: int
    steps_per_epoch: int
    rate: optim.Schedule
    optimizer: Any
    options: step.StepOptions
    key: Any
    trainable: Any
    labeller: Any = None

    def state(self, variables: Mapping[str, Any], teacher: Any, labeller: Any = None) -> step.TrainState:
        """The state at the first step, from the variables of model, teacher and labeller."""
        return step.new_state(variables, self.trainable, self.optimizer, bool(self.config.ema), teacher, labeller)

    def fresh(self) -> tuple[Any, Any, Any]:
        """Fresh variables of model, teacher and labeller, for their shapes; {} for what there is not."""
        source = self.labeller.source if self.labeller is not None and self.labeller.is_model else None
        return tuple({} if m is None else init_variables(m, 0) for m in (self.model, self.teacher, source))  # type: ignore[return-value]

    def step_function(self) -> Any:
        """The uncompiled train step."""
        parts = (self.model, self.model.losses, self.optimizer, self.rate, self.key, self.options)
        slim = self.model.slim
        second = [self.model.clone(slim=slim.clone(**options)) for options in slim.second_passes]
        return step.make_train_step(*parts, self.teacher, self.labeller, second)

    def compiled_step(self, mesh: Any, abstract: Any, batch: Any, smallest: int = 16384) -> Any:
        """The step, compiled for states and batches of these shapes; it consumes the state it is given."""
        shardings = state_shardings(mesh, abstract, smallest)
        fitted = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, shardings)
        whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        jitted = jax.jit(self.step_function(), donate_argnums=0, out_shardings=(shardings, whole))
        program = jitted.lower(fitted, batch).compile()
        check_program(program, len(jax.tree.leaves(batch["image"])[0]))
        return program


def build_stage(config: Any, name: str, steps_per_epoch: int, mesh: Any = None, labeller: Any = None) -> Stage:
    """Everything about a stage that does not need its weights.

    Args:
      config: validated.
      name: of the stage.
      steps_per_epoch: of the data.
      mesh: checked against the batch size where given.
      labeller: a function of images in place of config.labeller (`labeller.Function`).

    Raises:
      SlimError: for what does not fit: unknown losses, parameters that do not exist, a batch that does not divide.
    """
    stage = config.stages[name]
    start_path(config)  # fails early
    index = list(config.schedule).index(name)
    if mesh is not None:
        check_batch(config.data.batch_size, mesh, stage.accumulate)
    model = build_model(config, stage.slimmed, name)
    others = [build_model(config, config.stages[other].slimmed, other) for other in config.schedule]
    labels = labelling.build_labeller(config, model, build_preprocess(config), labeller, others)
    weights = _loss_weights(name, stage, model.loss_weights(labels is not None))
    steps = stage.steps or max(1, round(stage.epochs * steps_per_epoch))
    rate = optim.schedule(stage, steps, steps_per_epoch)
    shapes = jax.eval_shape(lambda: init_variables(model, 0))
    trainable = _trainable(stage.trainable, model.frozen)
    learning, _ = optim.select(shapes["params"], trainable)
    mixup = config.mixup.to_dict() if stage.mixup and (config.mixup.mixup or config.mixup.cutmix) else None
    options = step.StepOptions(
        loss_weights=weights,
        label_smoothing=stage.label_smoothing,
        mixup=MixupConfig(**mixup) if mixup else None,
        accumulate=stage.accumulate,
        ema=stage.ema,
        update_statistics=any(not optim.is_method(path) for path in optim.flat(learning)),
    )
    optimizer = optim.make_optimizer(learning, stage, rate, model)
    teacher = build_teacher(config) if model.slim.needs_teacher or "distillation" in weights else None
    if teacher is not None:
        model.check_teacher(teacher)
    key = jax.random.fold_in(jax.random.key(config.seed), index + 1)
    built = (steps, steps_per_epoch, rate, optimizer, options, key, trainable, labels)
    return Stage(name, index, stage, model, teacher, *built)


def _loss_weights(name: str, stage: Any, own: dict[str, float]) -> dict[str, float]:
    """The model's own weights with the stage's; every slimmed model can learn the dense model's logits too."""
    choices = sorted({*own, "distillation"} if stage.slimmed else own)
    for loss in stage.loss_weights:
        if loss not in choices:
            raise SlimError(f"config.stages.{name}.loss_weights has {loss!r}; choices: {', '.join(choices)}")
    given = {loss: weight for loss, weight in stage.loss_weights.items() if loss in own or weight}
    return own | given


def _trainable(trainable: Any, frozen: tuple[str, ...]) -> Any:
    """What a stage learns, without what the model keeps frozen, unless the stage names parameters itself."""
    if not frozen or trainable not in ("all", "backbone"):
        return trainable
    others = (*frozen, "slim/.*") if trainable == "backbone" else frozen
    return (rf"(?!({'|'.join(others)})$).*",)
