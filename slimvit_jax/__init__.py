"""slimvit_jax: token slimming for vision transformers in JAX.

In short:

    import slimvit_jax as slim

    model = slim.create_model("deit_small_patch16_224", method="life_regression", keep_rate=0.7)
    variables = slim.load(model, "deit_small.safetensors", init_missing="method")
    logits, aux = model.apply(variables, images, return_aux=True)
"""

from slimvit_jax import losses, methods
from slimvit_jax.budget import fit_budget
from slimvit_jax.build import create_model, list_methods, list_models, transform_for
from slimvit_jax.convert import from_torch, load, save, to_torch
from slimvit_jax.errors import SlimError
from slimvit_jax.fuse import fuse
from slimvit_jax.grid import grid_features
from slimvit_jax.inference.export import export
from slimvit_jax.inference.flops import FlopsReport, flops
from slimvit_jax.losses import Targets
from slimvit_jax.plan import Geometry, Plan
from slimvit_jax.pretrained import from_pretrained
from slimvit_jax.runs import TrainingRun, open_run
from slimvit_jax.slimming import Slimming
from slimvit_jax.tokens import Aux, Tokens

preprocess_for = transform_for  # its earlier name

__version__ = "0.1.0"

__all__ = [
    "Aux",
    "FlopsReport",
    "Geometry",
    "Plan",
    "SlimError",
    "Slimming",
    "Targets",
    "Tokens",
    "TrainingRun",
    "create_model",
    "export",
    "fit_budget",
    "flops",
    "from_pretrained",
    "from_torch",
    "fuse",
    "grid_features",
    "list_methods",
    "list_models",
    "load",
    "losses",
    "methods",
    "open_run",
    "preprocess_for",
    "save",
    "to_torch",
    "transform_for",
]
