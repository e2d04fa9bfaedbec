"""Freed memory is kept: the system is not asked for the same pages again."""

import ctypes
import platform
import subprocess
import sys

import pytest

from minivl2 import heap

GLIBC = platform.libc_ver()[0] == "glibc"
AGAIN = """
import resource, sys
import torch
from minivl2.heap import keep_freed
if sys.argv[1] == "kept":
    assert keep_freed()
torch.set_num_threads(1)
def layer():
    a = torch.ones(5_000_000)               # 20 MB, and 20 MB more
    b = a + 1
for _ in range(3):
    layer()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    layer()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def pages_fetched(how):
    return int(subprocess.run([sys.executable, "-c", AGAIN, how], capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(not GLIBC, reason="no C library that could be asked")
def test_what_was_let_go_is_not_fetched_from_the_system_again():
    """Three processes each: in some, a small block at the heap's end keeps glibc from trimming it. In the others, it fetches
    100,000 pages of 4 KB."""
    kept, usual = (sum(pages_fetched(how) for _ in range(3)) for how in ("kept", "usual"))
    assert 4 * kept < usual


def test_where_the_c_library_cannot_be_asked_nothing_happens(monkeypatch):
    def nobody(_):
        raise TypeError("LoadLibrary() argument 1 must be str, not None")       # as on Windows
    monkeypatch.setattr(ctypes, "CDLL", nobody)
    assert heap.keep_freed() is False
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())                     # as with musl
    assert heap.keep_freed() is False
