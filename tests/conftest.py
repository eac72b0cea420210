"""Settings for all tests, made before JAX is imported; test processes that tests start inherit them."""

import gc
import os
import sys
from pathlib import Path

# The tests compile far more than they compute: cheap code generation takes a tenth of the time and changes no result
# beyond rounding. Measurements of speed are not tests. SLIM_TEST_AS_USERS=1 compiles as everybody else does.
CHEAP = "--xla_cpu_use_fusion_emitters=false"
if os.environ.get("SLIM_TEST_AS_USERS", "0") == "0":
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    if CHEAP not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{CHEAP} {os.environ.get('XLA_FLAGS', '')}".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")

MAPS, MOST_MAPS, EVERY = Path("/proc/self/maps"), 20_000, 25
_tests_done = 0


def pytest_runtest_teardown():
    """Every compiled program holds memory maps, of which Linux gives a process 65,530: past that XLA crashes.

    So what was compiled is forgotten long before, which costs some compiling anew.
    """
    global _tests_done
    _tests_done += 1
    if _tests_done % EVERY or not MAPS.exists() or "jax" not in sys.modules:
        return
    with MAPS.open("rb") as maps:
        count = sum(1 for _ in maps)
    if count > MOST_MAPS:
        sys.modules["jax"].clear_caches()
        gc.collect()
