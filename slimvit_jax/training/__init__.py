"""Training: configs, stages, one pure step, checkpoints, and the folder a run leaves behind."""

from slimvit_jax.training.build import build_model, build_preprocess, build_source, eval_data
from slimvit_jax.training.config import default_config, stage_defaults, validate
from slimvit_jax.training.loading import load_config, parse_overrides
from slimvit_jax.training.loop import NotFinite, Stopped
from slimvit_jax.training.stages import RunResult, run

__all__ = [
    "NotFinite",
    "RunResult",
    "Stopped",
    "build_model",
    "build_preprocess",
    "build_source",
    "default_config",
    "eval_data",
    "load_config",
    "parse_overrides",
    "run",
    "stage_defaults",
    "validate",
]
