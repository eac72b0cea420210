"""Kills a run at random moments, again and again, and checks that it ends as if nothing had happened.

    python tests/soak_train.py [--kills 20] [--seed 0]

Kills by SIGKILL (sometimes SIGTERM), between half a second and the time a whole run takes after each start, so that all
phases are hit: start, compilation, steps, saving, the ends of stages. pytest does not run it; test_train_runs.py kills
once at a chosen moment.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from train_tools import ROOT, command, run_train, same, write_config

from slimvit_jax import training


def soak(folder: Path, kills: int, seed: int, steps: int = 4) -> int:
    """Returns how many starts it took; raises AssertionError where the outcome differs."""
    chance = random.Random(seed)
    config = write_config(folder, steps)
    began = time.monotonic()
    done = run_train(config, folder / "straight")
    assert done.returncode == 0, done.stderr
    whole = time.monotonic() - began
    starts = 0
    for kill in range(kills):
        starts += 1
        process = subprocess.Popen(
            command(config, folder / "killed"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=ROOT
        )
        try:
            process.wait(chance.uniform(0.5, whole))
            assert process.returncode == 0, process.stderr.read().decode() if process.stderr else ""
            print(f"start {starts}: ended by itself before kill {kill + 1}")
            break
        except subprocess.TimeoutExpired:
            chosen = signal.SIGTERM if chance.random() < 0.25 else signal.SIGKILL
            process.send_signal(chosen)
            process.wait()
            print(f"start {starts}: {chosen.name}, exit {process.returncode}", flush=True)
    last = run_train(config, folder / "killed")
    assert last.returncode == 0, last.stderr
    first, second = (training.load_run(folder / name) for name in ("straight", "killed"))
    for stage, variables in first.variables.items():
        assert same(variables["params"], second.variables[stage]["params"]), stage
    return starts


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        count = soak(Path(place), arguments.kills, arguments.seed, steps=20)
        print(f"{count} starts, bit-identical")
