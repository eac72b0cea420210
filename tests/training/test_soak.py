"""A run that is killed at random moments, again and again, ends with the very bits of a run that was left alone.

    python tests/training/test_soak.py [--kills 200] [--seed 1]        for longer than the test does

Every start is the same command. Kills are SIGKILL, and aimed: at a random time of the start-up, just after a step,
while a checkpoint is being written, and where a stage ends (evaluation, weights, stages.json, the next stage). The
compilation cache is the runs' own, so that the first starts also die while it is filled. The moments depend on the seed
and on the machine; the test prints them, and pytest shows that when it fails.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path

from train_tools import ROOT, command, run_train, same, write_config

from slimvit_jax import open_run

SECONDS = 100.0  # more than any start takes: a run that hangs fails the test


def logged(workdir: Path, kind: str) -> int:
    """How many lines of a kind the run has written so far."""
    try:
        return (workdir / "metrics.jsonl").read_text().count(f'"kind": "{kind}"')
    except FileNotFoundError:
        return 0


def saves(workdir: Path) -> int:
    """How many checkpoints are being written."""
    return sum(1 for _ in (workdir / "checkpoints").glob("*orbax-checkpoint-tmp*"))


#: Where to kill: what to watch (a count that rises), how often it must rise at most, and how long to wait at most then.
MOMENTS = {
    "starting": (None, 0, 2.0),
    "stepping": (lambda workdir: logged(workdir, "train"), 5, 0.05),
    "saving": (saves, 3, 0.05),
    "stage ends": (lambda workdir: logged(workdir, "eval"), 1, 0.5),
}
SHARES = {"starting": 1, "stepping": 2, "saving": 2, "stage ends": 1}  # of 6 kills


def wait_for(moment: str, process: subprocess.Popen, workdir: Path, chance: random.Random) -> None:
    """Returns at the moment, or when the process has ended."""
    watch, most, seconds = MOMENTS[moment]
    end = time.monotonic() + SECONDS
    for _ in range(chance.randint(1, most) if watch else 0):
        low = watch(workdir)
        while process.poll() is None and time.monotonic() < end:
            now = watch(workdir)
            if now > low:
                break
            low = now  # a restarted run forgets what it had logged after its checkpoint
            time.sleep(0.001)
    try:
        process.wait(chance.uniform(0.0, seconds))
    except subprocess.TimeoutExpired:
        pass
    assert time.monotonic() < end, f"nothing happened for {SECONDS:.0f} s: {moment}"


def check(straight: Path, killed: Path) -> None:
    """Both ended with the same parameters in every stage, and logged the same losses, each step once."""
    first, second = open_run(straight).result(), open_run(killed).result()
    assert list(first.variables) == list(second.variables) == list(first.config.schedule)
    for stage, variables in first.variables.items():
        assert same(variables["params"], second.variables[stage]["params"]), stage
    losses = []
    for workdir in (straight, killed):
        entries = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        losses.append([(entry["step"], entry["loss"]) for entry in entries if entry["kind"] == "train"])
    assert losses[0] == losses[1]


def soak(folder: Path, kills: int, seed: int, steps: int) -> Counter:
    """Kills `kills` times, in as many runs as that takes; returns how often at which moment."""
    chance = random.Random(seed)
    plan = chance.choices(list(SHARES), SHARES.values(), k=kills) if kills > 6 else list(Counter(SHARES).elements())
    chance.shuffle(plan)
    config, cache = write_config(folder, steps), f"--config.cache_dir={folder / 'cache'}"
    runs = [folder / "run0"]
    hit: Counter = Counter()
    print(f"seed {seed}")
    while plan:
        process = subprocess.Popen(
            command(config, runs[-1], cache), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=ROOT
        )
        wait_for(plan[-1], process, runs[-1], chance)
        process.send_signal(signal.SIGKILL)
        _, error = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), error.decode()
        if process.returncode == 0:
            print(f"{runs[-1].name} is done")
            runs.append(folder / f"run{len(runs)}")
            continue
        print(f"{runs[-1].name}: {plan[-1]}, {logged(runs[-1], 'train')} steps in the log", flush=True)
        hit[plan.pop()] += 1
    for workdir in (runs[-1], folder / "straight"):
        done = run_train(config, workdir, cache)
        assert done.returncode == 0, done.stderr
    for workdir in runs:
        check(folder / "straight", workdir)
    return hit


def test_six_kills(tmp_path):
    assert soak(tmp_path, kills=6, seed=0, steps=14) == SHARES


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        print(dict(soak(Path(place), arguments.kills, arguments.seed, steps=14)), "bit-identical")
