"""Opening a training run: its stages, its data, and its model in any variant, with the weights of any stage.

run = slim.open_run("runs/digits")
run.stages                                     # {"dense": {"steps": ..., "seconds": ..., "metrics": {...}}, ...}
model, variables = run.model(keep_rate=0.5)    # the last stage's, at another budget
model, variables = run.model(method="topk")    # another method on its weights
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slimvit_jax.errors import SlimError, unknown
from slimvit_jax.files import read_json
from slimvit_jax.slimming import Slimming

if TYPE_CHECKING:
    from slimvit_jax.backbones.base import Backbone
    from slimvit_jax.data import Source
    from slimvit_jax.training import RunResult

DENSE = ("none", "dense")  # names that ask for the model without a method


@dataclasses.dataclass(frozen=True)
class TrainingRun:
    """A run whose first stage at least is done.

    Attributes:
      path: its folder.
      config: resolved, as training saw it.
      stages: the stages that are done, in order, and what is known of each: "steps", "seconds" and "metrics" (accuracy,
        top5 and loss of the stage's model on the evaluation split, and examples).
    """

    path: Path
    config: Any
    stages: Mapping[str, Mapping[str, Any]]

    def stage(self, name: str | None = None) -> str:
        """The name of a stage that is done; the last one for None.

        Raises:
          SlimError: there is none of that name.
        """
        if name is not None and name not in self.stages:
            raise unknown(f"finished stage of {self.path}", name, self.stages)
        return name or list(self.stages)[-1]

    def weights(self, stage: str | None = None) -> Path:
        """The weights file that a stage left."""
        return self.path / "weights" / f"{self.stage(stage)}.safetensors"

    def model(
        self,
        stage: str | None = None,
        method: str | Slimming | None = None,
        keep_rate: float | tuple[float, ...] | None = None,
        **options: Any,
    ) -> tuple[Backbone, dict[str, Any]]:
        """A model of the run, and its variables.

        Args:
          stage: whose weights; None: the last one that is done.
          method: None: the stage's own. Another one runs on the backbone's weights, at the run's locations and keep
            rate where it has such options. "none": the dense model.
          keep_rate: another one; a schedule that the run gives in place of keep rates (budgets) then does not count.
          **options: of `create_model`, on top of the run's; and of `slim.load` (init_missing, inference, ...).

        Returns:
          A Flax module, and {"params": ...} of jax arrays. Parameters of the run's own method are left out where the
          model has another one.

        Raises:
          SlimError: no such stage; options that do not fit; weights that are damaged, or lack what the method learns
            (`init_missing="method"` makes that fresh).
        """
        from slimvit_jax.convert import split_load_options

        load, own = split_load_options(options)
        made = self.create(stage, method, keep_rate, **own)
        return made, self.variables(made, stage, **load)

    def create(
        self,
        stage: str | None = None,
        method: str | Slimming | None = None,
        keep_rate: float | tuple[float, ...] | None = None,
        **options: Any,
    ) -> Backbone:
        """The model that `model` gives, prepared for the run's images (`transform_for`); reads no weights."""
        from slimvit_jax.build import assemble
        from slimvit_jax.training import build

        stage = self.stage(stage)
        config, fields = self.config, self.config.stages[stage]
        backbone = config.model.options.to_dict() | fields.model_options.to_dict()
        own = config.method.name if fields.slimmed else ""
        chosen = (own or DENSE[0]) if method is None else method
        if isinstance(chosen, Slimming) or chosen in DENSE:
            if keep_rate is not None:
                raise SlimError(
                    f"keep_rate={keep_rate!r}: stage {stage!r} of {self.path} is dense; name a method or another stage"
                    if method is None
                    else f"keep_rate={keep_rate!r} goes with a method's name, not with {chosen!r}"
                )
            # `Slimming()`, not None, which is the method that a name such as sit_small implies
            made = chosen if isinstance(chosen, Slimming) else Slimming()
            return self._prepared(assemble(config.model.name, made, backbone | options))
        if chosen == config.method.name:
            inherited = config.method.options.to_dict() | (fields.method_options.to_dict() if own else {})
        else:
            inherited = _shared_options(build.build_model(config, fields.slimmed, stage), chosen)
        if keep_rate is not None:
            inherited = build.at_keep_rate(chosen, inherited, keep_rate)
        return self._prepared(assemble(config.model.name, chosen, backbone | inherited | options))

    def _prepared(self, model: Backbone) -> Backbone:
        """The model for the run's images and classes."""
        from slimvit_jax.training import build

        names = self._noted_names
        return build.prepared(self.config, model).clone(class_names=names if len(names) == model.num_classes else ())

    def variables(self, model: Backbone, stage: str | None = None, **load: Any) -> dict[str, Any]:
        """The weights of a stage for any model that shares its backbone.

        Args:
          model: of `create`, or one like it.
          stage: None: the last one.
          **load: options of `slim.load`.
        """
        from slimvit_jax import convert
        from slimvit_jax.training import build

        path, fields = self.weights(stage), self.config.stages[self.stage(stage)]
        own = build.build_model(self.config, fields.slimmed, self.stage(stage))
        if type(own.slim) is type(model.slim):
            return convert.load(model, path, **load)
        # The file has the names of the run's method, and its parameters; only the backbone's serve another one.
        inference = bool(load.get("inference", False))
        whole = convert.load(own, path, inference=inference)
        whole["params"].pop("slim", None)
        dense = build.build_model(self.config, False, self.stage(stage))
        try:
            return convert.from_torch(model, convert.to_torch(dense, whole, inference=inference), **load)
        except SlimError as error:
            raise SlimError(f"{path}: {error}") from None

    # Data ------------------------------------------------------------------------------------------------------------

    def source(
        self, split: str | None = None, data_dir: str | os.PathLike[str] | None = None, **options: Any
    ) -> Source:
        """The run's images, of the evaluation split if none is named; from another place where `data_dir` is given.

        `options` of `data.open_source` come on top of the run's.

        Raises:
          SlimError: they are not there.
        """
        from slimvit_jax import data

        own = self.config.data
        given = {**own.options.to_dict(), **options}
        return data.open_source(own.name, split or own.eval_split, data_dir or own.data_dir or None, **given)

    @functools.cached_property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes: as the run noted them, also where its data are gone; () where nobody knows them."""
        try:
            return self._noted_names or self.source().class_names
        except SlimError:
            return ()

    @functools.cached_property
    def _noted_names(self) -> tuple[str, ...]:
        noted = self.path / "data.json"
        if not noted.exists():
            return ()
        found = read_json(noted)
        names = found.get("class_names") if isinstance(found, dict) else None
        if not isinstance(names, list):
            raise SlimError(f"{noted}: damaged: it holds no class names")
        return tuple(map(str, names))

    def result(self) -> RunResult:
        """All stages with their variables, as `training.run` gave them at the end.

        Raises:
          SlimError: the weights of a stage are damaged.
        """
        from slimvit_jax.training import RunResult, build

        config, slimmed = self.config, {name: self.config.stages[name].slimmed for name in self.stages}
        weights = {name: self.variables(build.build_model(config, s, name), name) for name, s in slimmed.items()}
        model = build.build_model(config, slimmed[self.stage()])
        metrics, seconds = (
            {name: facts[key] for name, facts in self.stages.items() if key in facts} for key in ("metrics", "seconds")
        )
        return RunResult(config, self.path, model, build.build_model(config, False), weights, metrics, seconds, True)


def open_run(workdir: str | os.PathLike[str]) -> TrainingRun:
    """A training run from its folder, done wholly or in part.

    Raises:
      SlimError: no run there, a damaged file, or no stage that is done.
    """
    from slimvit_jax.training import config as configs

    path = Path(workdir)
    if not (path / "config.json").is_file():
        raise SlimError(f"{str(path)!r} is no training run: it has no config.json")
    plain = read_json(path / "config.json")
    if not isinstance(plain, dict) or "schedule" not in plain:
        raise SlimError(f"{str(path)!r} is no training run: its config.json is of something else")
    config = configs.from_dict(plain)
    noted = read_json(path / "stages.json") if (path / "stages.json").exists() else {}
    if not isinstance(noted, dict):
        raise SlimError(f"{path / 'stages.json'}: damaged: it holds no stages")
    done = [name for name in config.schedule if (path / "weights" / f"{name}.safetensors").is_file()]
    if not done:
        raise SlimError(f"{path}: no stage is done yet, there are no weights; stages: {', '.join(config.schedule)}")
    return TrainingRun(path, config, {name: noted.get(name, {}) for name in done})


def _shared_options(model: Backbone, method: str) -> dict[str, Any]:
    """Where and how much the model's method drops, for another one that has such options."""
    from slimvit_jax.methods import METHODS

    slim: Any = model.slim
    locations = getattr(slim, "places", None) or getattr(slim, "locations", None)
    takes = METHODS[method].__dataclass_fields__ if method in METHODS else {}
    if not locations or "locations" not in takes or any(getattr(slim, name) for name in slim.in_place_of_keep_rate):
        return {}
    rate = slim.keep_rate
    same = "keep_rate" in takes and (not isinstance(rate, tuple) or len(rate) == len(locations))
    return {"locations": locations} | ({"keep_rate": rate} if same else {})
