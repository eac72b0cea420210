"""Whole runs: resume, crashes, locks, corrupt files, losses that are not finite. Tiny; CPU, bit for bit."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from train_tools import ROOT, command, run_train, same, tiny_config, write_config

from slimvit_jax import open_run, training
from slimvit_jax.errors import SlimError
from slimvit_jax.training import loop


def lines(workdir: Path, kind: str = "train") -> list[dict]:
    entries = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [entry for entry in entries if entry["kind"] == kind]


def events(workdir: Path) -> list[str]:
    return [entry["name"] for entry in lines(workdir, "event")]


def stop_after(monkeypatch, steps: int) -> None:
    """Makes the run believe it got SIGTERM after so many steps in all."""
    counter = {"left": steps}
    update = loop.StageProgress.update

    def counting(self, done, numbers=None):
        if numbers is None:
            counter["left"] -= 1
            if counter["left"] == 0:
                os.kill(os.getpid(), signal.SIGTERM)
        update(self, done, numbers)

    monkeypatch.setattr(loop.StageProgress, "update", counting)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run that was never stopped."""
    workdir = tmp_path_factory.mktemp("straight")
    return training.run(tiny_config(), workdir)


def test_a_run_leaves_what_it_says(straight):
    path = straight.workdir
    assert list(straight.variables) == ["dense", "predictor", "backbone"]
    assert {
        "config.json",
        "environment.json",
        "data.json",
        "metrics.jsonl",
        "stages.json",
        "weights",
        "checkpoints",
    } <= {entry.name for entry in path.iterdir()}
    data = json.loads((path / "data.json").read_text())
    assert data["class_names"] == [str(digit) for digit in range(10)]
    assert data["evaluation"] == {"split": "test[:120]", "images": 120}
    train = lines(path)
    assert [entry["step"] for entry in train] == list(range(1, 13))
    keys = {"stage", "stage_step", "epoch", "loss", "loss_classification", "accuracy", "grad_norm", "lr"}
    assert keys | {"images_per_second", "data_wait", "time"} <= train[0].keys()
    assert len(lines(path, "eval")) == 3 and lines(path, "eval")[0]["examples"] == 120
    for name in ("compiled", "memory"):
        assert [e["stage"] for e in lines(path, "event") if e["name"] == name] == ["dense", "predictor", "backbone"]
    assert all(e["process_peak_mib"] > 0 for e in lines(path, "event") if e["name"] == "memory")
    again = open_run(path).result()
    for stage, variables in straight.variables.items():
        assert same(variables["params"], again.variables[stage]["params"])
    assert not any(p.name.startswith(".") for p in (path / "weights").iterdir())


def test_only_the_trainable_part_changes_between_stages(straight):
    params = {name: v["params"] for name, v in straight.variables.items()}
    backbone = lambda tree: {k: v for k, v in tree.items() if k != "slim"}
    assert same(params["dense"], backbone(params["predictor"]))
    assert same(params["predictor"]["slim"], params["backbone"]["slim"])
    assert not same(backbone(params["predictor"]), backbone(params["backbone"]))


def test_one_set_of_weights_serves_other_keep_rates(straight):
    images = np.zeros((2, 16, 16, 1), np.float32)
    for rate in (0.9, 0.5):
        model = training.build_model(straight.config, keep_rate=rate)
        logits = jax.jit(model.apply)(straight.variables["backbone"], images)
        assert np.isfinite(logits).all()


@pytest.mark.parametrize("steps", [3, 8])
def test_stopped_and_gone_on_equals_never_stopped(steps, straight, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, steps)
        with pytest.raises(training.Stopped):
            training.run(tiny_config(), tmp_path)
    result = training.run(tiny_config(), tmp_path)
    assert same(result.variables["backbone"]["params"], straight.variables["backbone"]["params"])
    assert [entry["step"] for entry in lines(tmp_path)] == list(range(1, 13))
    assert [e["loss"] for e in lines(tmp_path)] == [e["loss"] for e in lines(straight.workdir)]
    assert events(tmp_path).count("stage_done") == 3 and "resume" in events(tmp_path)


def test_done_stages_are_not_done_again(straight):
    before = (straight.workdir / "weights" / "dense.safetensors").stat().st_mtime_ns
    result = training.run(tiny_config(), straight.workdir)
    assert result.resumed and same(result.variables["backbone"]["params"], straight.variables["backbone"]["params"])
    assert (straight.workdir / "weights" / "dense.safetensors").stat().st_mtime_ns == before
    assert [entry["step"] for entry in lines(straight.workdir)] == list(range(1, 13))


def test_no_compilation_after_the_first_step(tmp_path):
    """Steps run an ahead-of-time compiled program; nothing else is compiled while they run."""
    compiled: list[str] = []
    marks: list[int] = []

    def listen(event: str, duration: float, **_) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    update = loop.StageProgress.update
    try:
        loop.StageProgress.update = lambda self, done, numbers=None: (marks.append(len(compiled)), update(self, done))
        config = tiny_config(6)
        config.schedule = ("dense",)
        config.checkpoint.every_steps = 100
        training.run(config, tmp_path)
    finally:
        loop.StageProgress.update = update
        jax.monitoring.clear_event_listeners()
    assert len(marks) > 6 and marks[0] == marks[-1]


def test_a_second_run_compiles_nothing_and_is_traced(tmp_path):
    """With the cache of the first, which is on by default. `--profile` writes a trace of the steps asked for."""
    config = write_config(tmp_path, steps=3)
    more = ["--config.schedule=dense", f"--config.cache_dir={tmp_path / 'cache'}"]
    log = {"JAX_LOG_COMPILES": "1"}
    first = run_train(config, tmp_path / "first", *more, env=log)
    second = run_train(config, tmp_path / "second", *more, "--profile=2", "--config.profile.start=1", env=log)
    assert first.returncode == second.returncode == 0, second.stderr
    compiled, hit = "Finished XLA compilation", "Persistent compilation cache hit"
    assert first.stderr.count(compiled) > 5 and first.stderr.count(hit) < first.stderr.count(compiled)
    assert second.stderr.count(compiled) == second.stderr.count(hit) > 5
    assert [e["from_cache"] for e in lines(tmp_path / "second", "event") if e["name"] == "compiled"] == [True]
    assert not (tmp_path / "first" / "profile").exists()
    (trace,) = (tmp_path / "second" / "profile" / "dense").rglob("*.xplane.pb")
    assert b"train_step" in trace.read_bytes()


def test_another_config_is_refused(straight):
    config = tiny_config()
    config.stages.dense.lr.backbone = 0.5
    config.log.every_steps = 3  # harmless
    with pytest.raises(SlimError, match=r"another config: stages.dense.lr.backbone: 0.001 -> 0.5$"):
        training.run(config, straight.workdir)


def test_a_run_that_did_nothing_claims_nothing(tmp_path, capsys):
    """A missing weights file is noticed first; the option that mends it can be added."""
    config = tiny_config(2)
    config.schedule = ("dense",)
    config.init.path = str(tmp_path / "none.safetensors")
    with pytest.raises(SlimError, match="none.safetensors"):
        training.run(config, tmp_path / "run")
    assert capsys.readouterr().out == "" and not (tmp_path / "run" / "config.json").exists()
    config.init.path = ""
    result = training.run(config, tmp_path / "run")
    assert (tmp_path / "run" / "config.json").exists() and result.metrics["dense"]["examples"] == 120
    assert [entry["stage_step"] for entry in lines(tmp_path / "run")] == [1, 2]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"architecture": "vit"}')
    with pytest.raises(SlimError, match="no run's of ours"):
        training.run(config, tmp_path / "other")
    assert (tmp_path / "other" / "config.json").read_text() == '{"architecture": "vit"}'


def test_a_stage_shorter_than_the_log_interval_shows_progress(capsys):
    from types import SimpleNamespace

    from rich.console import Console

    from slimvit_jax.training.logs import StageProgress

    logs = SimpleNamespace(console=Console(soft_wrap=True))
    with StageProgress(logs, "short", 3, 0, seconds=0.0) as progress:
        for step in (1, 2):
            progress.update(step)
    assert capsys.readouterr().out.startswith("short: 1/3")


def test_a_second_run_is_refused(tmp_path):
    config = tiny_config()
    from slimvit_jax.training.workdir import Workdir

    first = Workdir(tmp_path, config)
    try:
        with pytest.raises(SlimError, match=f"in use by another run .process {os.getpid()}"):
            training.run(config, tmp_path)
    finally:
        first.close()
    Workdir(tmp_path, config).close()


def damage(checkpoint: Path, how: str) -> None:
    """Truncates or empties what holds the arrays of a checkpoint."""
    files = [f for f in checkpoint.rglob("*") if f.is_file()]
    if how in ("truncated", "one bit"):
        # Which file holds how much differs from save to save, and some hold what is no longer referred to: all of them.
        for file in (f for f in files if f.parent.name == "d"):
            data = bytearray(file.read_bytes())
            data[len(data) // 2] ^= 4
            file.write_bytes(bytes(data[: len(data) // 2] if how == "truncated" else data))
    elif how == "meta":
        for file in (checkpoint / "meta").rglob("*"):
            if file.is_file():
                file.write_bytes(b"{")
    else:
        for file in files:
            if "state" in file.parts or file.parent != checkpoint:
                file.unlink()


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run stopped after step 3 of the predictor stage; saved there and at its step 2."""
    workdir = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 4 + 3)
        with pytest.raises(training.Stopped):
            training.run(tiny_config(), workdir)
    assert sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()) == [6, 7]
    return workdir


@pytest.mark.parametrize("how", ["truncated", "one bit", "meta", "gone"])
def test_corrupt_newest_checkpoint(how, straight, stopped, tmp_path, capsys):
    tmp_path = shutil.copytree(stopped, tmp_path / "run")
    damage(tmp_path / "checkpoints" / "7", how)
    result = training.run(tiny_config(), tmp_path)
    assert same(result.variables["backbone"]["params"], straight.variables["backbone"]["params"])
    assert "checkpoint 7 cannot be read" in capsys.readouterr().out and "checkpoint_corrupt" in events(tmp_path)
    assert [entry["step"] for entry in lines(tmp_path)] == list(range(1, 13))


def test_corrupt_weights_of_a_done_stage(straight, tmp_path, capsys):
    config = tiny_config()
    config.schedule = ("dense",)
    first = training.run(config, tmp_path)
    file = tmp_path / "weights" / "dense.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    second = training.run(config, tmp_path)
    assert same(first.variables["dense"]["params"], second.variables["dense"]["params"])
    assert "done again" in capsys.readouterr().out


def test_loss_that_is_not_finite(tmp_path):
    config = tiny_config()
    config.stages.dense.lr.backbone = 1e30
    config.stages.dense.weight_decay = 0.0
    config.checkpoint.every_steps = 1
    with pytest.raises(training.NotFinite) as caught:
        training.run(config, tmp_path)
    message = str(caught.value)
    assert "stage 'dense'" in message and "learning rate 6.67e+29" in message and "\n" not in message, message
    assert "not_finite" in events(tmp_path)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["1"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_disk_full_while_saving(tmp_path, capsys):
    """Saves after the first fail as on a full disk (files may not grow); the run says so, and the good one stays."""
    config = tiny_config(6)
    config.schedule = ("dense",)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    save = loop.Checkpoints.save

    def limited(self, step, state, meta, wait=False):
        if step > 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, old[1]))
        try:
            return save(self, step, state, meta, wait=True)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Checkpoints, "save", limited)
        training.run(config, tmp_path)
    signal.signal(signal.SIGXFSZ, ignored)
    said = capsys.readouterr().out
    assert "checkpoint 4 could not be saved" in said and "the last good one is 2" in said
    assert [p.name for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()] == ["2"]


def wait_for(condition, process, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.02)


def test_kill_and_term_of_a_real_process(straight, tmp_path):
    """SIGKILL, then SIGTERM, then left alone: the end is bit-identical to a run that was never stopped."""
    config, workdir = write_config(tmp_path), tmp_path / "run"
    log = workdir / "metrics.jsonl"
    read = lambda: log.read_text() if log.exists() else ""
    first = subprocess.Popen(command(config, workdir), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=ROOT)
    wait_for(lambda: '"stage_step": 3' in read(), first)
    first.send_signal(signal.SIGKILL)
    first.wait()
    second = subprocess.Popen(command(config, workdir), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=ROOT)
    wait_for(lambda: '"stage": "predictor", "steps"' in read(), second)
    second.send_signal(signal.SIGTERM)
    _, error = second.communicate(timeout=120)
    assert second.returncode == 143 and b"the same command goes on" in error, (second.returncode, error)
    last = run_train(config, workdir)
    assert last.returncode == 0, last.stderr
    result = open_run(workdir).result()
    for stage, variables in straight.variables.items():
        assert same(variables["params"], result.variables[stage]["params"]), stage
    assert [entry["step"] for entry in lines(workdir)] == list(range(1, 13))
