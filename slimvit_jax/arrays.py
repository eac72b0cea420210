"""Arrays of other libraries as numpy arrays."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from slimvit_jax.errors import SlimError


def as_numpy(name: str, value: Any) -> np.ndarray:
    """A numpy, jax or torch array as a floating numpy array (torch's bfloat16 as float32); all else is a SlimError."""
    if hasattr(value, "detach"):  # a torch tensor, recognised without importing torch
        value = value.detach().cpu()
        value = value.float().numpy() if str(value.dtype) == "torch.bfloat16" else value.numpy()
    array = np.asarray(value)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise SlimError(f"state dict: {name} holds {array.dtype}, not floating numbers")
    return array
