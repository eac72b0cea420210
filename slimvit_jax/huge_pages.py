"""Huge pages for host memory: on CPU, a training step without most of its page faults.

XLA's CPU backend asks malloc for its temporary buffers at every call, hundreds of megabytes for a training step. glibc
gives such blocks back to the system at once, so that every step touches fresh pages of 4 KiB: 140,000 page faults in a
step of a ViT of 12 layers and width 64 at batch 128. Asked for huge pages (2 MiB, Linux "madvise") there are 400. glibc
reads that wish from the environment when a process starts, hence the restart.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

WISH = "glibc.malloc.hugetlb=1"
#: Set to 0 to leave the process as it is.
SWITCH = "SLIMVIT_HUGE_PAGES"
_STATE = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def restart_with_huge_pages() -> None:
    """Starts this command anew in the same process with GLIBC_TUNABLES=glibc.malloc.hugetlb=1.

    To be called first thing by programs, never by a library. Returns where there is nothing to do: the wish is there
    already, huge pages are not (another system, glibc before 2.35, switched off), or SLIMVIT_HUGE_PAGES=0.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if os.environ.get(SWITCH) == "0" or "glibc.malloc.hugetlb" in tunables or not available():
        return
    os.environ["GLIBC_TUNABLES"] = f"{tunables}:{WISH}" if tunables else WISH
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def available() -> bool:
    """Whether glibc can ask for huge pages and the kernel gives them to who asks, and only then."""
    try:
        name, version = (os.confstr("CS_GNU_LIBC_VERSION") or " ").split(" ", 1)
        return name == "glibc" and tuple(map(int, version.split("."))) >= (2, 35) and "[madvise]" in _STATE.read_text()
    except (OSError, ValueError, AttributeError):  # no such name, no such file: not Linux with glibc
        return False
