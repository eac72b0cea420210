"""All stages of a config, one after the other, each from where it was left."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax

from slimvit_jax import convert
from slimvit_jax.errors import SlimError
from slimvit_jax.training import build
from slimvit_jax.training import config as configs
from slimvit_jax.training.checkpoint import Checkpoints
from slimvit_jax.training.devices import make_mesh, start_devices, start_processes, to_host
from slimvit_jax.training.labeller import labeller_variables
from slimvit_jax.training.logs import Logs
from slimvit_jax.training.loop import Interrupt, Run, StageResult, StageRun, Stopped
from slimvit_jax.training.workdir import Workdir


@dataclasses.dataclass
class RunResult:
    """A finished run.

    Attributes:
      config: resolved.
      workdir: its folder.
      model: as the config says, without what stages override; with the method where the last stage has it.
      dense_model: the same without the method.
      variables: by stage, in order; NumPy.
      metrics: by stage: accuracy, top5, loss of the stage's model on the evaluation split, and examples.
      seconds: by stage, over all runs that worked on it.
      resumed: whether an earlier run of this workdir had done part of it.
    """

    config: Any
    workdir: Path
    model: Any
    dense_model: Any
    variables: dict[str, Any]
    metrics: dict[str, dict[str, float]]
    seconds: dict[str, float]
    resumed: bool


def run(config: Any, workdir: str | Path, labeller: Any = None) -> RunResult:
    """Trains every stage of `config.schedule` in `workdir`; stages that are done there are not done again.

    Args:
      config: of `default_config`'s fields.
      workdir: the run's folder.
      labeller: another network's labels, in place of config.labeller: a function that JAX can trace, of images
        (B, H, W, C) prepared as the model's, to (B, classes) logits; see `training.labeller`.

    Raises:
      SlimError: for what does not fit, before any long work; NotFinite (a SlimError) when the loss is not finite.
      Stopped: asked to stop, with everything saved.
    """
    configs.validate(config)
    start_processes(config.dist)
    start_devices(config.mesh, config.cache_dir)
    config, source, eval_source = build.build_sources(config)
    folder = Workdir(workdir, config)
    logs = Logs(folder.path, config.log.tensorboard)
    checkpoints = None
    try:
        mesh = make_mesh(config.mesh.fsdp)
        size = config.data.batch_size
        if size > len(source):
            raise SlimError(f"config.data.batch_size={size} exceeds the {len(source)} training images")
        steps_per_epoch = build.train_data(config, config.stages[config.schedule[0]], 0, source).steps_per_epoch
        stages = [build.build_stage(config, name, steps_per_epoch, mesh, labeller) for name in config.schedule]
        folder.describe(source, eval_source)
        checkpoints = Checkpoints(folder.path / "checkpoints", config.checkpoint.keep, logs.event)
        with Interrupt() as interrupt:
            shared = Run(config, folder.path, mesh, logs, checkpoints, interrupt, source, eval_source, folder.claim)
            return _run_stages(shared, folder, stages)
    finally:
        if checkpoints is not None:
            checkpoints.close()
        logs.close()
        folder.close()


def _run_stages(run: Run, folder: Workdir, stages: list[build.Stage]) -> RunResult:
    config = run.config
    dense = build.build_model(config, slimmed=False)
    model = build.build_model(config, slimmed=stages[-1].config.slimmed)
    result = RunResult(config, folder.path, model, dense, {}, {}, {}, bool(folder.done()))
    # weights that are missing or do not fit are noticed before anything is announced
    first = [] if folder.claimed else [_start(run, stages[0], stages, result)]
    devices = f"{jax.device_count()} {jax.default_backend()} device" + ("s" if jax.device_count() > 1 else "")
    text = f"{config.name}: {len(run.source)} training images, {len(run.eval_source)} held out, {devices}"
    run.logs.event("start", text, done=list(folder.done()))
    offset = 0
    for stage in stages:
        outcome = _done_stage(run, folder, stage)
        if outcome is None:
            text = f"stage {stage.name}: {stage.steps} steps, learns {stage.config.trainable}"
            run.logs.event("stage_start", text, offset, stage=stage.name, steps=stage.steps)
            start = lambda stage=stage: first.pop() if first else _start(run, stage, stages, result)
            outcome = StageRun(run, stage, offset).train(start)
            folder.claim()
            if jax.process_index() == 0:
                convert.save(stage.model, outcome.variables, folder.weights(stage.name), overwrite=True)
            facts = {"steps": outcome.steps, "seconds": outcome.seconds, "metrics": outcome.metrics}
            folder.mark_done(stage.name, facts)
            text = f"stage {stage.name} done: accuracy {outcome.metrics['accuracy']:.4f}, {outcome.seconds:.0f} s"
            run.logs.event("stage_done", text, offset + stage.steps, stage=stage.name, **facts)
        offset += stage.steps
        result.variables[stage.name] = outcome.variables
        result.metrics[stage.name] = outcome.metrics
        result.seconds[stage.name] = outcome.seconds
        if run.interrupt.signal is not None:  # came while the stage was being finished
            raise Stopped(f"stopped after stage {stage.name!r}; the same command goes on", run.interrupt.signal)
    return result


def _done_stage(run: Run, folder: Workdir, stage: build.Stage) -> StageResult | None:
    facts = folder.done().get(stage.name)
    if facts is None:
        return None
    try:
        variables = convert.load(stage.model, folder.weights(stage.name))
    except SlimError as error:
        run.logs.event("weights_corrupt", f"stage {stage.name} is done again: {error}", stage=stage.name)
        return None
    return StageResult(to_host(variables), facts["metrics"], facts["seconds"], facts["steps"])


def _start(run: Run, stage: build.Stage, stages: list[build.Stage], result: RunResult) -> tuple[Any, Any, Any]:
    """Variables of a stage's first step, of its teacher (the dense weights the method starts from) and labeller."""
    config = run.config
    if result.variables:
        before = list(result.variables.values())[-1]
        variables = build.adopt(before, build.init_variables(stage.model, config.seed))
    else:
        path = build.start_path(config)
        if path.startswith("hf-hub:") or (path and Path(path).exists()):  # of others the error is enough
            run.logs.event("weights", f"{stage.name}: reading weights {path}", stage=stage.name)
        variables = build.start_variables(config, stage.model)
    labels = labeller_variables(config, stage.labeller)
    if stage.teacher is None:
        return variables, None, labels
    dense = [result.variables[s.name] for s in stages if not s.config.slimmed and s.name in result.variables]
    if not dense and not config.init.path:
        raise SlimError(
            f"stage {stage.name!r} of method {stage.model.slim.method!r} learns from a teacher that has no weights; set"
            " config.init.path to those of the dense model, or put a dense stage (slimmed=False) in front"
        )
    fresh = build.init_variables(stage.teacher, config.seed)
    return variables, build.adopt(dense[-1], fresh) if dense else build.start_variables(config, stage.teacher), labels
