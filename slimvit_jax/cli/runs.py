"""A finished training run as something to evaluate, draw or export."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from slimvit_jax.cli import common
from slimvit_jax.errors import SlimError, unknown


def open_run(args: argparse.Namespace) -> common.Target:
    """The model, weights file and data of the run in --workdir; --keep-rate, --method and --set change the model."""
    from slimvit_jax import create_model
    from slimvit_jax.training.build import build_preprocess

    workdir = Path(args.workdir)
    config = read_config(workdir)
    stage, weights = _weights(workdir, config, args.stage)
    options = common.method_options(args)
    name = config.method.name if config.stages[stage].slimmed and config.method.name else None
    name = options.pop("method", name)
    extra = config.stages[stage].to_dict()
    inherited: dict[str, Any] = {}
    if name == "none":
        name = None
    elif name == config.method.name:
        inherited = config.method.options.to_dict() | extra["method_options"]
    if "keep_rate" in options:
        if name is None:
            raise SlimError(
                f"--keep-rate {args.keep_rate}: stage {stage!r} of {workdir} is dense; add --method or --stage"
            )
        inherited.pop("budgets", None)  # a schedule of its own would win over the keep rate that is asked for
    model_options = config.model.options.to_dict() | extra["model_options"]
    model = create_model(config.model.name, method=name, **{**model_options, **inherited, **options})
    model = model.clone(preprocess=build_preprocess(config))
    preprocess = common.preprocess_of(args, model)
    ignored = ("life_predictor",) if name != config.method.name else ()
    return common.Target(
        model,
        f"{config.name}/{stage}",
        str(weights),
        preprocess,
        config=config,
        init_missing=tuple(args.init_missing),
        ignore=ignored,
    )


def read_config(workdir: Path) -> Any:
    """The configuration of a run; a SlimError if the folder is not one."""
    import json

    from slimvit_jax.training.config import from_dict

    path = workdir / "config.json"
    if not path.is_file():
        raise SlimError(f"{str(workdir)!r} is no training run: it has no config.json")
    try:
        return from_dict(json.loads(path.read_text(encoding="utf-8")))
    except json.JSONDecodeError as error:
        raise SlimError(f"{path}: damaged at line {error.lineno}: {error.msg}") from error


def _weights(workdir: Path, config: Any, stage: str | None) -> tuple[str, Path]:
    """The stage to look at and its weights file: `stage`, or the last one that is done."""
    done = [name for name in config.schedule if (workdir / "weights" / f"{name}.safetensors").is_file()]
    if not done:
        raise SlimError(f"{workdir}: no stage is done yet, there are no weights; stages: {', '.join(config.schedule)}")
    if stage is not None and stage not in done:
        raise unknown(f"finished stage of {workdir}", stage, done)
    chosen = stage or done[-1]
    return chosen, workdir / "weights" / f"{chosen}.safetensors"
