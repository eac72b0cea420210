"""The commands of `python -m slimvit_jax`: one module each, imported only when its command is called."""
