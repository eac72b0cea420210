"""A port and a process around the app: what can go wrong with them, and how they end."""

from __future__ import annotations

import errno
import os
import signal
import socket
from collections.abc import Callable

import uvicorn
from starlette.applications import Starlette

from slimvit_jax.errors import SlimError
from slimvit_jax.serve.app import Served, create_app
from slimvit_jax.serve.uploads import Limits


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes any that is free.

    Raises:
      SlimError: the port is in use or not allowed, or there is no such address.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # asyncio switches Nagle's algorithm off where the socket names its protocol: else an answer's body waits 40 ms
        listening = socket.socket(family, kind, protocol)
        try:
            if os.name == "posix":
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen(256)
        except OSError:
            listening.close()
            raise
        return listening
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise SlimError(f"port {port} of {host} is in use; choose another with --port, or --port 0") from None
        known = error.errno is not None and error.errno > 0
        reason = os.strerror(error.errno) if known else error.strerror  # type: ignore[arg-type]
        raise SlimError(f"cannot listen on port {port} of {host}: {reason}") from None


def url_of(listening: socket.socket) -> str:
    """The page's address."""
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


def around(app: Starlette) -> uvicorn.Server:
    """uvicorn, with the event loop and the parser that are tested, whatever else is installed."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            loop="asyncio",
            http="h11",
            ws="none",
            lifespan="on",
            log_config=None,  # its own would close the handlers that the process has, absl's and with it stderr
            log_level="warning",
            access_log=False,
            server_header=False,
            limit_concurrency=1000,
            timeout_graceful_shutdown=10,
        )
    )


def serve(listening: socket.socket, served: Served, limits: Limits, progress: Callable[[int], None]) -> None:
    """Answers until SIGTERM or SIGINT, then lets running requests end, ten seconds at most.

    Raises:
      Exception: whatever kept the programs from being compiled.
    """
    failures: list[Exception] = []

    def failed(error: Exception) -> None:
        failures.append(error)
        server.should_exit = True

    server = around(create_app(served, limits, progress, failed))
    # uvicorn raises the signals that ended it once more when it is done; here they have done what they were for.
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        server.run(sockets=[listening])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        listening.close()
    if failures:
        raise failures[0]
