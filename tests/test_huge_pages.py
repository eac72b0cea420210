"""Programs restart themselves once with huge pages for malloc, and stay the same process and command."""

import os
import subprocess
import sys

import pytest

from slimvit_jax import huge_pages

PROGRAM = """
import os, sys
print("start", flush=True)
from slimvit_jax.huge_pages import restart_with_huge_pages
restart_with_huge_pages()
print(os.getpid(), os.environ.get("GLIBC_TUNABLES"), sys.argv[1:])
"""


def start(**environment):
    clean = {key: value for key, value in os.environ.items() if key not in ("GLIBC_TUNABLES", huge_pages.SWITCH)}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "a b"], env=clean | environment, stdout=subprocess.PIPE, text=True
    )
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    lines = out.splitlines()
    assert lines[-1].startswith(str(process.pid))
    return lines[:-1], lines[-1]


@pytest.mark.skipif(not huge_pages.available(), reason="the kernel gives no huge pages to who asks")
@pytest.mark.parametrize("given", ["", "glibc.malloc.arena_max=2"])
def test_restarts_once_with_the_wish_added(given):
    starts, last = start(**({"GLIBC_TUNABLES": given} if given else {}))
    assert starts == ["start", "start"]
    assert last.endswith("['a b']") and huge_pages.WISH in last and given in last


def test_leaves_a_process_alone_that_says_so():
    for environment in ({huge_pages.SWITCH: "0"}, {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=2"}):
        starts, last = start(**environment)
        assert starts == ["start"] and huge_pages.WISH not in last
