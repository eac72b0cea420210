"""Two real processes on this machine: they train, are killed, start again, and end where one process ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from pathlib import Path

import numpy as np
import pytest
from test_train_runs import wait_for
from train_tools import ROOT, command, run_train, tiny_config, write_config

from slimvit_jax import open_run
from slimvit_jax.errors import SlimError
from slimvit_jax.training import devices
from slimvit_jax.training.optim import flat


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def start_two(config: Path, workdir: Path, *more: str) -> list[subprocess.Popen]:
    port = free_port()
    places = [f"--config.dist.coordinator=localhost:{port}", "--config.dist.num_processes=2"]
    return [
        subprocess.Popen(
            command(config, workdir, *places, f"--config.dist.process_id={rank}", *more),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            cwd=ROOT,
        )
        for rank in (0, 1)
    ]


def test_two_processes_killed_and_restarted_equal_one(tmp_path):
    """SIGKILL to both, then SIGTERM to one, as when one host is taken away: both stop at the same step."""
    config = write_config(tmp_path, steps=24)
    alone, together = tmp_path / "alone", tmp_path / "together"
    done = run_train(config, alone, "--config.schedule=dense", "--config.mesh.cpu_devices=2")
    assert done.returncode == 0, done.stderr
    log = together / "metrics.jsonl"
    since_start = lambda: log.read_text().rpartition('"name": "start"')[2] if log.exists() else ""
    first = start_two(config, together, "--config.schedule=dense")
    wait_for(lambda: '"stage_step": 3' in since_start(), first[0])
    for process in first:
        process.send_signal(signal.SIGKILL)
    for process in first:
        process.wait()
    second = start_two(config, together, "--config.schedule=dense")
    wait_for(lambda: log.read_text().count('"name": "start"') == 2 and '"stage_step"' in since_start(), second[0])
    second[1].send_signal(signal.SIGTERM)
    said = []
    for process in second:
        _, error = process.communicate(timeout=100)
        said.append(error.decode().strip().splitlines()[-1])
        assert process.returncode == 143, said
    assert said[0] == said[1] and "saved, the same command goes on" in said[0], said
    for process in start_two(config, together, "--config.schedule=dense"):
        _, error = process.communicate(timeout=200)
        assert process.returncode == 0, error.decode()
    one, two = (flat(open_run(path).result().variables["dense"]["params"]) for path in (alone, together))
    for path, leaf in one.items():
        np.testing.assert_allclose(leaf, two[path], atol=2e-5, err_msg=path)


def test_checkpoint_of_eight_devices_restores_onto_one(tmp_path):
    """Stopped with the parameters split over 4 of 8 devices, gone on with one: the same end, but for rounding."""
    config = write_config(tmp_path, steps=60)
    alone, moved = tmp_path / "alone", tmp_path / "moved"
    plain = ["--config.schedule=dense", "--config.checkpoint.every_steps=1000"]
    assert run_train(config, alone, *plain).returncode == 0
    many = ["--config.mesh.cpu_devices=8", "--config.mesh.fsdp=4", "--config.mesh.smallest=64"]
    log = moved / "metrics.jsonl"
    first = subprocess.Popen(
        command(config, moved, *plain, *many), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=ROOT
    )
    wait_for(lambda: log.exists() and '"stage_step": 3' in log.read_text(), first)
    first.send_signal(signal.SIGTERM)
    _, error = first.communicate(timeout=120)
    assert first.returncode == 143, error.decode()
    last = run_train(config, moved, *plain)
    assert last.returncode == 0 and "going on after step" in last.stdout, last.stderr
    one, two = (flat(open_run(path).result().variables["dense"]["params"]) for path in (alone, moved))
    for path, leaf in one.items():
        np.testing.assert_allclose(leaf, two[path], atol=2e-3, err_msg=path)


def test_half_given_addresses():
    config = tiny_config()
    config.dist.coordinator = "localhost:1234"
    with pytest.raises(
        SlimError, match="coordinator .*num_processes and process_id .*together; got 'localhost:1234', 0, -1"
    ):
        devices.start_processes(config.dist)


def test_one_process_joins_nobody(monkeypatch):
    for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "JAX_COORDINATOR_ADDRESS", "TPU_WORKER_HOSTNAMES"):
        monkeypatch.delenv(name, raising=False)
    devices.start_processes(tiny_config().dist)
    monkeypatch.setenv("SLURM_NTASKS", "1")
    devices.start_processes(tiny_config().dist)
