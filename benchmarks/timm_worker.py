"""timm's models in a process of their own: torch and JAX disturb each other's threads inside one.

Reads one JSON request per line from standard input and answers each with one JSON line on standard output:

    {"build": NAME, "batch": B, "dtype": "float32", "compile": false, "device": "cpu", "threads": 2, "options": {}}
                                                                                   -> {"id": 0}
    {"time": 0, "repeats": 3}                                                      -> {"wall": seconds, "cpu": seconds}

An error is answered as {"error": "..."}; the worker goes on. `Timm` is the other end.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


class WorkerError(RuntimeError):
    """What timm, torch or the compiler said."""


class Timm:
    """A running worker; a context manager."""

    def __enter__(self) -> Timm:
        command = [sys.executable, str(Path(__file__).resolve())]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def ask(self, **request: Any) -> dict[str, Any]:
        """One request and its answer.

        Raises:
          WorkerError: if the worker answers with an error or is gone.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except OSError as error:
            raise WorkerError(f"the timm worker is gone: {error}") from error
        if not line:
            raise WorkerError("the timm worker is gone; its own message is above")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def build(
        self, name: str, batch: int, dtype: str, compiled: bool, device: str, threads: int, options: Any = None
    ) -> int:
        """Makes and warms up a model, with timm's `options`; returns the number to time it by."""
        facts = {"batch": batch, "dtype": dtype, "compile": compiled, "device": device, "threads": threads}
        return self.ask(build=name, **facts, options=options or {})["id"]

    def sampler(self, number: int):
        """A `slimvit_jax.inference.timing.Sampler` of that model."""

        def sample(repeats: int) -> tuple[float, float]:
            answer = self.ask(time=number, repeats=repeats)
            return answer["wall"], answer["cpu"]

        return sample


def import_timm(torch: Any) -> Any:
    """timm; where torchvision's compiled operators do not load, their names are declared first."""
    try:
        return importlib.import_module("timm")
    except RuntimeError:
        for name in [name for name in sys.modules if name.split(".")[0] in ("torchvision", "timm")]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import_timm.library = library  # type: ignore[attr-defined]  # torch drops operators of a collected library
        return importlib.import_module("timm")


class _Server:
    def __init__(self) -> None:
        import torch

        self.torch, self.timm, self.runs = torch, import_timm(torch), []

    def build(self, request: dict[str, Any]) -> dict[str, Any]:
        torch = self.torch
        if request["device"] == "cpu":
            torch.set_num_threads(request["threads"])
        dtype = getattr(torch, request["dtype"])
        model = self.timm.create_model(request["build"], **request["options"]).eval().to(request["device"], dtype)
        size = (3, *model.patch_embed.img_size) if request["options"] else model.pretrained_cfg["input_size"]
        images = torch.randn(request["batch"], *size, device=request["device"], dtype=dtype)
        run = torch.compile(model) if request["compile"] else model
        for _ in range(2):
            self.work(run, images)
        self.runs.append((run, images))
        return {"id": len(self.runs) - 1}

    def work(self, run: Any, images: Any, repeats: int = 1) -> None:
        with self.torch.inference_mode():
            for _ in range(repeats):
                run(images)
        if images.is_cuda:
            self.torch.cuda.synchronize()

    def time(self, request: dict[str, Any]) -> dict[str, Any]:
        run, images = self.runs[request["time"]]
        repeats = request["repeats"]
        wall, cpu = time.perf_counter(), time.process_time()
        self.work(run, images, repeats)
        return {"wall": (time.perf_counter() - wall) / repeats, "cpu": (time.process_time() - cpu) / repeats}


def serve() -> None:
    """Answers requests until standard input ends; whatever libraries print goes to standard error."""
    out, sys.stdout = sys.stdout, sys.stderr
    server = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            server = server or _Server()
            answer = server.build(request) if "build" in request else server.time(request)
        except Exception as error:  # told to the other end, which knows what to do without this model
            answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        print(json.dumps(answer), file=out, flush=True)


if __name__ == "__main__":
    serve()
