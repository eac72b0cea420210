"""What a worker process does besides making batches, and how an iterator ends its own at exit."""

from __future__ import annotations

import atexit
import gc
import multiprocessing
import os
import signal
import threading
import weakref
from multiprocessing.connection import wait
from typing import Any


def start_worker(index: int, count: int) -> None:
    """Runs in each worker first: leaves Ctrl-C to the main process, and ends when that is gone.

    A main process that was killed cannot end its workers: without this they would hold their memory for ever.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), name="end with parent", daemon=True).start()


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)  # not sys.exit: the queues' threads wait for a reader that is gone


def free_batches(num_workers: int) -> None:
    """Frees what worker processes made for a stream that is closed and gone.

    Its last batches lie in shared memory, held by cycles of grain's iterators; Python would free them at some later
    time, or warn at its end of memory that leaks.
    """
    if num_workers:
        gc.collect()


def close_at_exit(iterator: Any) -> None:
    """Has iterator.close() called when the program ends, if the iterator still lives then."""
    reference = weakref.ref(iterator)

    def close() -> None:
        alive = reference()
        if alive is not None:
            alive.close()

    atexit.register(close)
    weakref.finalize(iterator, atexit.unregister, close)
