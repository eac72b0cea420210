"""The HTTP side: routes, limits, and one line for whatever is wrong."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import logging
import os
import statistics
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from slimvit_jax.errors import unknown
from slimvit_jax.images import BadImage, LargeImage, Preprocess
from slimvit_jax.inference.evaluate import best_classes
from slimvit_jax.serve.batcher import Batcher, Full
from slimvit_jax.serve.engine import Answer, Engine
from slimvit_jax.serve.metrics import CountRequests, Metrics
from slimvit_jax.serve.uploads import Limits, body_of, picture_of

logger = logging.getLogger(__name__)
_COMPARING = 0.25  # seconds of the device for the times that the page shows
_PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",
}


@dataclasses.dataclass(frozen=True)
class Served:
    """What is served.

    Attributes:
      engine: not prepared yet; the app does that.
      preprocess: from an image file to the model's input.
      title: of the model.
      class_names: one per class, or () where nobody knows them.
      default: the name of the budget that answers where none is asked for.
    """

    engine: Engine
    preprocess: Preprocess
    title: str
    class_names: tuple[str, ...]
    default: str


def create_app(
    served: Served,
    limits: Limits = Limits(),  # noqa: B008 (frozen)
    progress: Callable[[int], None] = lambda done: None,
    failed: Callable[[Exception], None] = lambda error: None,
) -> Starlette:
    """The ASGI application. It compiles when it starts, and answers 503 until that is done.

    Args:
      served: the model.
      limits: see there.
      progress: hears how many programs are compiled.
      failed: hears why nothing more will be.
    """
    service = _Service(served, limits, progress, failed)
    routes = [
        Route("/", service.page),
        Route("/model", service.model),
        Route("/health", service.health),
        Route("/metrics", service.show_metrics),
        Route("/classify", service.classify, methods=["POST"]),
        Route("/compare", service.compare, methods=["POST"]),
    ]
    return Starlette(
        routes=routes,
        lifespan=service.lifespan,
        middleware=[Middleware(CountRequests, metrics=service.metrics, paths={route.path for route in routes})],
        exception_handlers={HTTPException: _one_line, Exception: _broken},
    )


class _Service:
    def __init__(
        self, served: Served, limits: Limits, progress: Callable[[int], None], failed: Callable[[Exception], None]
    ) -> None:
        self.served, self.limits, self.engine = served, limits, served.engine
        self.metrics = Metrics()
        self._progress, self._failed = progress, failed
        self._device = ThreadPoolExecutor(1, "device")
        self._decoders = ThreadPoolExecutor(min(4, os.cpu_count() or 1), "decode")
        self.batcher = Batcher(self.engine, self._device, limits.wait, limits.places, self.metrics.batch)
        self.metrics.watch(lambda: self.batcher.taken)
        self._page = resources.files("slimvit_jax.serve").joinpath("page.html").read_text(encoding="utf-8")

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        stop = threading.Event()
        preparing = asyncio.create_task(self._prepare(stop))
        working = asyncio.create_task(self.batcher.work())
        try:
            yield
        finally:
            stop.set()
            await preparing  # the one program that is compiling just now
            working.cancel()
            self._device.shutdown()
            self._decoders.shutdown()

    async def _prepare(self, stop: threading.Event) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._device, self.engine.prepare, self._progress, stop)
        except Exception as error:  # out of memory, say; without programs there is nothing to serve
            self._failed(error)

    # What is asked ---------------------------------------------------------------------------------------------------

    async def page(self, request: Request) -> Response:
        return HTMLResponse(self._page, headers=_PAGE_HEADERS)

    async def show_metrics(self, request: Request) -> Response:
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def health(self, request: Request) -> Response:
        done, total = len(self.engine.seconds), self.engine.total
        state = {"status": "ok" if done == total else "starting", "programs": done, "of": total}
        return JSONResponse(state, 200 if done == total else 503)

    async def model(self, request: Request) -> Response:
        model, limits = next(iter(self.engine.budgets.values())).model, self.limits
        slim, seconds = model.slim, self.engine.seconds
        timed = lambda name: {size: 1000 * taken for (owner, size), taken in list(seconds.items()) if owner == name}
        budgets = [each.facts() | {"milliseconds": timed(name)} for name, each in self.engine.budgets.items()]
        facts = {
            "title": self.served.title,
            "method": slim.method,
            "merges": slim.merges,
            "score_name": slim.score_name,
            "score_range": slim.score_range,
            "grid": model.geometry.grid,
            "depth": model.geometry.depth,
            "img_size": model.img_size,
            "classes": self.served.class_names or model.num_classes,
            "budgets": budgets,
            "default": self.served.default,
            "batch_sizes": self.engine.batch_sizes,
            "limits": dataclasses.asdict(limits),
        }
        return JSONResponse(facts)

    async def classify(self, request: Request) -> Response:
        """One image at one keep rate: ?keep_rate=0.7&top=5."""
        started = time.perf_counter()
        self._check_query(request, "keep_rate", "top")
        self._check_ready()
        budget, top = self._budget(request), self._top(request)
        with self._places(1):
            data = await body_of(request, self.limits)
            image, decoding = await self._decoded(data)
            answer = await self.batcher.ask(budget, image)
        found = self._described(budget, answer, top)
        found["milliseconds"] |= {"decode": 1000 * decoding, "total": 1000 * (time.perf_counter() - started)}
        return JSONResponse(found)

    async def compare(self, request: Request) -> Response:
        """One image at every keep rate, and what the model sees of it as a picture.

        Where the model is fast it runs several times, all keep rates in turns: `milliseconds.model` is the median.
        """
        self._check_query(request, "top")
        self._check_ready()
        top, names = self._top(request), list(self.engine.budgets)
        with self._places(len(names)):
            data = await body_of(request, self.limits)
            image, decoding = await self._decoded(data)
            shown = await self._in_decoder(picture_of, self.served.preprocess.for_display(), data)
            one = sum(self.engine.seconds[name, self.engine.batch_sizes[0]] for name in names)
            rounds = [
                await asyncio.gather(*(self.batcher.ask(name, image) for name in names))
                for _ in range(max(1, min(15, int(_COMPARING / one))))
            ]
        results = [self._described(name, answer, top) for name, answer in zip(names, rounds[0], strict=True)]
        for result, answers in zip(results, zip(*rounds, strict=True), strict=True):
            result["milliseconds"]["model"] = 1000 * statistics.median(answer.seconds for answer in answers)
        return JSONResponse({"picture": shown, "milliseconds": {"decode": 1000 * decoding}, "results": results})

    # Its parts -------------------------------------------------------------------------------------------------------

    def _check_query(self, request: Request, *known: str) -> None:
        given = [name for name, _ in request.query_params.multi_items()]
        for name in given:
            if name not in known:
                raise HTTPException(400, str(unknown(f"parameter of {request.url.path}", name, known)))
            if given.count(name) > 1:
                raise HTTPException(400, f"{name} is given more than once")

    def _check_ready(self) -> None:
        if len(self.engine.seconds) < self.engine.total:
            done = f"{len(self.engine.seconds)} of {self.engine.total} programs are compiled"
            raise HTTPException(503, f"still starting: {done}", {"retry-after": "5"})

    def _budget(self, request: Request) -> str:
        asked = request.query_params.get("keep_rate")
        if asked is None:
            return self.served.default
        for name, budget in self.engine.budgets.items():
            with contextlib.suppress(ValueError):
                if asked == name or float(asked) == budget.keep_rate:
                    return name
        raise HTTPException(400, str(unknown("keep_rate", asked, self.engine.budgets)))

    def _top(self, request: Request) -> int:
        asked = request.query_params.get("top", "5")
        if not (asked.isdecimal() and asked.isascii() and 1 <= int(asked[:9]) <= 1_000_000):
            raise HTTPException(400, f"top={asked!r} must be a whole number from 1 to 1,000,000")
        return int(asked)

    @contextlib.contextmanager
    def _places(self, count: int) -> Any:
        try:
            with self.batcher.places(count):
                yield
        except Full:
            message = f"all {self.limits.places} places are taken; try again in a second"
            raise HTTPException(503, message, {"retry-after": "1"}) from None

    async def _decoded(self, data: bytes) -> tuple[np.ndarray, float]:
        """The model's input, and the seconds it took."""
        prepare, most = self.served.preprocess, self.limits.pixels

        def timed() -> tuple[np.ndarray, float]:
            started = time.perf_counter()
            image = prepare.normalise(prepare.pixels(data, "the image", most))
            return image, time.perf_counter() - started

        return await self._in_decoder(timed)

    async def _in_decoder(self, function: Callable[..., Any], *arguments: Any) -> Any:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._decoders, functools.partial(function, *arguments))
        except BadImage as error:
            raise HTTPException(413 if isinstance(error, LargeImage) else 400, str(error)) from None

    def _described(self, name: str, answer: Answer, top: int) -> dict[str, Any]:
        budget = self.engine.budgets[name]
        slim = budget.model.slim
        found: dict[str, Any] = {
            "keep_rate": budget.keep_rate,
            "classes": best_classes(answer.logits, top, self.served.class_names),
            "token_counts": slim.plan.token_counts,
        }
        if answer.scores is not None:
            key = "lives" if slim.predicts_lives else "scores"
            found[key] = [float(f"{score:.5g}") for score in answer.scores.tolist()]
        if answer.kept is not None:
            found["kept"] = [index[index >= 0].tolist() for index in answer.kept]
        if answer.groups:
            found["groups"] = [owner.tolist() for owner in answer.groups]
        found["milliseconds"] = {"model": 1000 * answer.seconds}
        found["batch"] = answer.batch
        return found


async def _one_line(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": " ".join(error.detail.split())}, error.status_code, error.headers)


async def _broken(request: Request, error: Exception) -> Response:
    logger.error("%s %s", request.method, request.url.path, exc_info=error)
    return JSONResponse({"error": "the server failed; its log says why"}, 500)
