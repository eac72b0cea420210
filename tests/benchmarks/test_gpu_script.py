"""The dry run of benchmarks/gpu.sh: what waits for an accelerator works before there is one."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import parity, study, throughput
from slimvit_jax import create_model, training

# One worker runs the calls, once.
pytestmark = pytest.mark.xdist_group("gpu_script")
slow = pytest.mark.skipif("SLIM_SLOW_TESTS" not in os.environ, reason="a minute and a half; SLIM_SLOW_TESTS=1 runs it")

ROOT = Path(__file__).parents[2]


def call(folder, *words, **env):
    env = {**os.environ, "PYTHON": sys.executable, "OUT": str(folder), "PYTHONPATH": str(ROOT), **env}
    command = [str(ROOT / "benchmarks" / "gpu.sh"), *words]
    return subprocess.run(command, env=env, cwd=folder.parent, capture_output=True, text=True)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpu") / "out"
    return folder, [call(folder, number, "--tiny") for number in "123"]


@pytest.mark.parametrize("number", "123")
def test_every_command_is_one_that_its_program_takes(tmp_path, number):
    printed = call(tmp_path, number, "--print")
    assert printed.returncode == 0 and not (tmp_path / "parity.json").exists()
    lines = [shlex.split(line)[2:] for line in printed.stdout.splitlines()]
    assert len(lines) == {"1": 3, "2": 1, "3": 1}[number]
    for module, *words in lines:
        if module == "benchmarks.throughput":
            args = throughput.parse(words)
            assert args.resume and args.dtypes == ["bfloat16"] and args.peak_tflops == "measured"
            create_model(args.models[0], depth=10)
        elif module == "benchmarks.study":
            args, rest = study.parse(words)
            training.load_config(ROOT / args.config, training.parse_overrides(rest))
        else:
            assert parity.parse(words).tolerance == 1e-4


@slow
def test_every_call_completes_in_miniature(done):
    folder, calls = done
    for outcome in calls:
        assert outcome.returncode == 0, outcome.stdout[-3000:] + outcome.stderr[-3000:]
    parity = json.loads((folder / "parity.json").read_text())
    assert {row["method"] for row in parity["rows"]} == {"life_regression"}
    assert all(row["close"] for row in parity["rows"])
    speed = json.loads((folder / "throughput.json").read_text())
    batches = {(row["batch"], row["name"]) for row in speed["throughput"]}
    names = ("dense", "life_regression 0.7", "timm eager")
    assert batches == {(batch, name) for batch in (3, 1) for name in names} and speed["notes"] == []
    assert speed["peak_tflops"] > 0 and len(speed["training"]) == 7
    dense, kept = (
        next(row for row in speed["training"] if row["step"].endswith(end)) for end in ("dense", "kept patches")
    )
    assert dense["of_dense"] == dense["flops_of_dense"] == 1 and 0.5 < kept["flops_of_dense"] < 0.7
    assert (folder / "study_small" / "results.jsonl").read_text().count("\n") == 1


@slow
def test_a_call_again_does_nothing_twice(done):
    folder, _ = done
    before = (folder / "throughput.json").read_bytes()
    again = call(folder, "2", "--tiny")
    assert again.returncode == 0 and (folder / "throughput.json").read_bytes() == before


def test_without_time_a_call_says_what_is_left(tmp_path):
    outcome = call(tmp_path / "out", "1", "--tiny", MINUTES="0")
    assert outcome.returncode == 1 and outcome.stdout.count("no time left") == 3
    assert call(tmp_path / "out", "4").returncode == 2
