"""Throughput of `slimvit serve` against direct calls, and ten thousand requests of which one in twenty is broken.

    python -m benchmarks.serving --workdir runs/digits [--out results/serving.json]

Starts the server as another process on this machine and asks it through kept-alive connections, as many as there are
clients, each sending its next image when it has the last answer. Direct calls are a loop in this process that decodes
the same files and runs the same model, one by one or 16 at a time. All take turns, round by round; medians are written.
The clients share the processor with the server: with a model as small as this one they take much of it, so beside
images per second stands the processor time per image of the process that computes, be it the server or this one.

The long run checks every answer: classes, probabilities and kept patches against the model itself, for a broken image
that one line and a 4xx status came. The server's memory is read on the way.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from slimvit_jax import open_run, transform_for
from slimvit_jax.files import write_json
from slimvit_jax.images.decode import decode
from slimvit_jax.inference.evaluate import Inference, probabilities
from slimvit_jax.inference.timing import describe_machine

RATES = (1.0, 0.7, 0.5)
CLIENTS = (1, 8, 32)
BROKEN_SHARE = 0.05


def files_of(run: Any, count: int) -> list[bytes]:
    """PNG files of the run's held-out images."""
    source, files = run.source(), []
    for record in range(count):
        file = io.BytesIO()
        decode(source[record]["image"]).save(file, "png")
        files.append(file.getvalue())
    return files


def broken_files(good: bytes) -> list[bytes]:
    """Ways to be no image."""
    return [b"", b"GET / HTTP/1.1", good[: len(good) // 2], b"P6 40000 40000 255\n", good[:20] + b"\0" * 200]


class Connection:
    """One client: requests over one kept-alive connection."""

    def __init__(self, port: int) -> None:
        self.port = port

    async def open(self) -> Connection:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        return self

    async def ask(self, body: bytes, rate: float) -> tuple[int, Any]:
        head = f"POST /classify?keep_rate={rate:g} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        self.writer.write(head.encode() + body)
        answer = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        length = int(re.search(r"content-length: (\d+)", answer)[1])  # type: ignore[index]
        return int(answer.split()[1]), json.loads(await self.reader.readexactly(length))


async def loop_of(port: int, pid: int, clients: int, files: list[bytes], requests: int) -> dict[str, float]:
    """Requests per second of so many clients, and how long one waits."""
    waited, batches = [], []
    todo = iter(range(requests))

    async def client() -> None:
        connection = await Connection(port).open()
        for number in todo:
            started = time.perf_counter()
            status, found = await connection.ask(files[number % len(files)], 0.5)
            assert status == 200, found
            waited.append(time.perf_counter() - started)
            batches.append(found["batch"])
        connection.writer.close()

    started, cpu = time.perf_counter(), cpu_of(pid)
    await asyncio.gather(*(client() for _ in range(clients)))
    seconds, cpu = time.perf_counter() - started, cpu_of(pid) - cpu
    median, late = np.quantile(waited, (0.5, 0.95))
    return {
        "per_second": requests / seconds,
        "cpu_ms": 1000 * cpu / requests,
        "median_ms": 1000 * median,
        "p95_ms": 1000 * late,
        "mean_batch": float(np.mean(batches)),
    }


def direct(run: Inference, prepare: Any, files: list[bytes], size: int, requests: int) -> dict[str, float]:
    """Images per second of a loop that decodes and runs `size` at a time."""
    started, cpu = time.perf_counter(), time.process_time()
    for first in range(0, requests, size):
        batch = np.stack([prepare(files[(first + k) % len(files)]) for k in range(size)])
        jax.device_get(run(batch))
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    return {"per_second": requests / seconds, "cpu_ms": 1000 * cpu / requests}


def expected_of(run: Any, files: list[bytes]) -> dict[float, list[tuple[np.ndarray, list[set[int]]]]]:
    """Per keep rate and file: the probabilities, and the patches kept after every drop."""
    expected = {}
    for rate in RATES:
        model, variables = run.model(keep_rate=rate)
        outputs = Inference(model, variables)(np.stack([transform_for(model)(file) for file in files]))
        kept = [np.asarray(index) for index in outputs.kept or ()]
        shares = probabilities(outputs.logits)
        expected[rate] = [(shares[k], [set(index[k].tolist()) for index in kept]) for k in range(len(files))]
    return expected


def is_right(found: Any, share: np.ndarray, kept: list[set[int]]) -> bool:
    probable = {guess["class"]: guess["probability"] for guess in found["classes"]}
    return (
        found["classes"][0]["class"] == int(share.argmax())
        and all(abs(share[number] - told) < 1e-4 for number, told in probable.items())
        and [set(index) for index in found["kept"]] == kept
    )


async def long_run(
    port: int, pid: int, files: list[bytes], expected: Any, requests: int, clients: int
) -> dict[str, Any]:
    """Every request's answer checked; the server's memory after every tenth of them."""
    random, broken = np.random.default_rng(0), broken_files(files[0])
    count: dict[str, int] = dict.fromkeys(("right", "refused", "wrong", "lost", "busy"), 0)
    memory, todo = [memory_of(pid)], iter(range(requests))
    started = time.perf_counter()

    async def client() -> None:
        connection = await Connection(port).open()
        for number in todo:
            if number % (requests // 10) == requests // 10 - 1:
                memory.append(memory_of(pid))
            rate, bad, file = random.choice(RATES), random.random() < BROKEN_SHARE, int(random.integers(len(files)))
            body = broken[file % len(broken)] if bad else files[file]
            try:
                status, found = await connection.ask(body, rate)
            except (OSError, EOFError):
                count["lost"] += 1
                connection = await Connection(port).open()
                continue
            if status == 503:
                count["busy"] += 1
            elif bad:
                one_line = 400 <= status < 500 and list(found) == ["error"] and "\n" not in found["error"]
                count["refused" if one_line else "wrong"] += 1
            else:
                count["right" if status == 200 and is_right(found, *expected[rate][file]) else "wrong"] += 1
        connection.writer.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    seconds = time.perf_counter() - started
    return {"requests": requests, "clients": clients, **count, "seconds": seconds, "server_rss_mb": memory}


def cpu_of(pid: int) -> float:
    """Seconds of processor time that a process has taken, in ticks of a hundredth."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_of(pid: int) -> float:
    """Megabytes in memory of a process."""
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) / 1024  # type: ignore[index]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True, help="of configs/digits.py")
    parser.add_argument("--out", type=Path, default=Path("results/serving.json"))
    parser.add_argument("--requests", type=int, default=10_000, help="of the long run")
    parser.add_argument("--per-round", type=int, default=600, help="requests of one measurement")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    run = open_run(args.workdir)
    files = files_of(run, 100)
    expected = expected_of(run, files)
    model, variables = run.model(keep_rate=0.5)
    prepare, inference = transform_for(model), Inference(model, variables)
    rates = ",".join(f"{rate:g}" for rate in RATES)
    command = ["serve", f"--workdir={args.workdir}", "--port=0", f"--keep-rates={rates}"]
    with subprocess.Popen([sys.executable, "-m", "slimvit_jax", *command], stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            port = int(re.search(r":(\d+)/", server.stdout.readline())[1])  # type: ignore[index]
            print(server.stdout.readline().strip(), flush=True)
            samples: dict[str, list[dict[str, float]]] = {}
            for turn in range(args.rounds + 1):
                for size in (1, 16):
                    found = direct(inference, prepare, files, size, args.per_round // size * size)
                    samples.setdefault(f"direct, batch {size}", []).append(found)
                for clients in CLIENTS:
                    found = asyncio.run(loop_of(port, server.pid, clients, files, args.per_round))
                    samples.setdefault(f"{clients} client{'s' * (clients > 1)}", []).append(found)
                if turn == 0:  # warm-up
                    samples.clear()
            long = asyncio.run(long_run(port, server.pid, files, expected, args.requests, 16))
        finally:
            server.send_signal(signal.SIGTERM)
        status = server.wait(30)
    medians = {
        name: {key: statistics.median(sample[key] for sample in taken) for key in taken[0]}
        for name, taken in samples.items()
    }
    facts = {
        "command": "python -m benchmarks.serving " + " ".join(sys.argv[1:]),
        "machine": describe_machine(),
        "model": f"{run.config.name}, keep rate 0.5, {model.geometry.num_patches} patches, width {model.geometry.dim}",
        "throughput": medians,
        "long_run": long,
        "exit_status_after_sigterm": status,
    }
    write_json(args.out, facts)
    print(json.dumps({"throughput": medians, "long_run": long, "exit": status}, indent=2))


if __name__ == "__main__":
    main()
