"""Memory that was let go is kept for whoever wants some next, instead of being handed back.

Source   mallopt(3) of the GNU C library
Tests    tests/test_heap.py

Reading a prompt takes and lets go tens of megabytes in every layer. By default the C library hands the free end of its
heap back to the system, and gets it again a moment later: page by page, each of which the system first fills with zeros.
Whether it happens depends on what lies at the end of the heap, so the same prompt may take a sixth longer, or not.
"""

import ctypes

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3     # from malloc.h
LARGE = 2**25                               # bytes; what is larger never lies in the heap, and goes back at once


def keep_freed(most: int = 2**30) -> bool:
    """For this whole process, which then may hold so many bytes more than it uses, though never more than it once used.

    Returns whether the C library listens. Only glibc does (Linux); elsewhere nothing changes.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    return bool(mallopt(MMAP_THRESHOLD, LARGE) and mallopt(TRIM_THRESHOLD, most))
