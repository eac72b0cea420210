"""Arrays of other libraries as numpy arrays."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from slimvit_jax.errors import SlimError, first_line


def as_numpy(name: str, value: Any) -> np.ndarray:
    """A numpy, jax or torch array as a floating numpy array; all else is a SlimError.

    What torch has and numpy has not (bfloat16, eight bits) comes as float32.
    """
    try:
        if hasattr(value, "detach"):  # a torch tensor, recognised without importing torch
            value = value.detach().cpu()
            native = str(value.dtype) in ("torch.float16", "torch.float32", "torch.float64")
            value = value.float().numpy() if value.is_floating_point() and not native else value.numpy()
        array = np.asarray(value)
    except (TypeError, ValueError, NotImplementedError, RuntimeError) as error:  # sparse, without data, on no device
        raise SlimError(f"state dict: {name} cannot be read as an array: {first_line(error)}") from None
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise SlimError(f"state dict: {name} holds {array.dtype}, not floating numbers")
    return array
