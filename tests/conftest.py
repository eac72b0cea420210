"""Settings for all tests, made before JAX is imported; test processes that tests start inherit them."""

import os

# The tests compile far more than they compute: cheap code generation halves their time and changes no result beyond
# rounding. Measurements of speed are not tests.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
