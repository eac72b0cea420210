"""Weights in and out: torch state dicts, files, the hub."""

from slimvit_jax.convert.io import load, read_state_dict, save, split_load_options
from slimvit_jax.convert.resample import resample_pos_embed
from slimvit_jax.convert.statedict import from_torch, to_torch

__all__ = ["from_torch", "load", "read_state_dict", "resample_pos_embed", "save", "split_load_options", "to_torch"]
