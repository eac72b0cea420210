"""What the server counts, in Prometheus' text format."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest


class Metrics:
    """Counters of one server."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "slimvit_requests", "Answers, by path and HTTP status", ["path", "status"], registry=registry
        )
        self._seconds = Histogram(
            "slimvit_request_seconds", "From a request's head to the end of its answer", ["path"], registry=registry
        )
        self._batches = Histogram(
            "slimvit_batch_images",
            "Images run together",
            ["budget"],
            buckets=(1, 2, 4, 8, 16, 32, 64, 128),
            registry=registry,
        )
        self._device = Counter("slimvit_device_seconds", "Seconds the model ran", ["budget"], registry=registry)
        self._places = Gauge("slimvit_images_inside", "Uploading, decoding, waiting or running", registry=registry)

    def watch(self, inside: Callable[[], int]) -> None:
        """`inside` tells how many images are in the house."""
        self._places.set_function(inside)

    def batch(self, budget: str, images: int, seconds: float) -> None:
        """A batch has run."""
        self._batches.labels(budget).observe(images)
        self._device.labels(budget).inc(seconds)

    def answered(self, path: str, status: int, seconds: float) -> None:
        """A request has its answer."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self._registry)


class CountRequests:
    """ASGI middleware: counts every answer.

    Paths that the app has not are one, "other": else anybody could fill the memory.
    """

    def __init__(self, app: Any, metrics: Metrics, paths: Collection[str]) -> None:
        self._app, self._metrics, self._paths = app, metrics, paths

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def noted(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._metrics.answered(path, status, time.perf_counter() - started)
