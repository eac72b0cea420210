"""Settings for all tests, made before JAX is imported; test processes that tests start inherit them."""

import gc
import os
import sys
from pathlib import Path

# The tests compile far more than they compute: cheap code generation takes a tenth of the time and changes no result
# beyond rounding. Measurements of speed are not tests. SLIM_TEST_AS_USERS=1 compiles as everybody else does.
CHEAP = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
if os.environ.get("SLIM_TEST_AS_USERS", "0") == "0":
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    if CHEAP not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{CHEAP} {os.environ.get('XLA_FLAGS', '')}".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("SLIMVIT_HUGE_PAGES", "0")  # programs would start a second time for them

#: Files, or functions of files, whose tests compile, train or start processes for seconds each: `-m "not slow"` leaves
#: them out. What is left still traces every method and does all algebra, options, files, data and commands.
SLOW = """
    test_add_a_backbone test_add_a_method test_any_batch test_batch_norm_training test_budget test_cli_runs
    test_coverage test_distillation test_encoders test_evo_levit test_export test_fidelity test_from_pretrained
    test_grid test_inference_weights test_levit test_life_training test_lvvit test_lvvit_methods test_methods_devices
    test_nnx test_notebooks test_padding test_probe test_report test_saliency test_serve test_serve_page test_soak
    test_squeeze test_study test_suite_papers test_timm test_token_labelling test_train_distributed test_train_resume
    test_train_runs test_wheel test_matrix::test_inference test_matrix::test_gradients
    test_matrix::test_gradients_in_bfloat16 test_matrix::test_a_batch_of_one_equals_the_image_inside_a_batch
    test_matrix::test_keeping_all_is_the_dense_model test_train_config::test_shipped_config_starts_shrunk
    test_train_config::test_shipped_config_runs_shrunk test_train_step::test_eight_devices_equal_one
    test_train_step::test_accumulation_equals_one_big_batch
    test_merging::test_every_original_token_has_an_owner_or_is_gone test_clustering::test_budgets_and_batches
    test_results_page::test_committed_pages_are_of_the_committed_results
    test_convert_layouts::test_models_of_transformers_compute_the_same
    test_life_regression::test_soft_weights_with_a_large_temperature_are_the_hard_drop
""".split()

MAPS, MOST_MAPS, EVERY = Path("/proc/self/maps"), 20_000, 25
_tests_done = 0


def pytest_collection_modifyitems(items):
    """Marks what is slow; in tests/methods and tests/ops only what computes whole models of the goldens' size."""
    for item in items:
        function = getattr(item, "originalname", item.name)
        golden = item.path.parent.name == "methods" and "golden" in function
        if golden or item.path.stem in SLOW or f"{item.path.stem}::{function}" in SLOW:
            item.add_marker("slow")


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
