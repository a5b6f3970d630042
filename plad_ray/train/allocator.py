"""How a training process gets its memory from the system."""

from __future__ import annotations

import ctypes
import platform

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt's names for them in glibc's malloc.h
#: Buffers of this size and more are the system's again as soon as they are free.
LARGE = 4 * 2**20
#: Less than this at the top of the heap is kept for the next step.
KEPT = 2 * 2**30 - 1  # mallopt takes an int


def keep_large_buffers_apart() -> None:
    """Fixed thresholds for glibc's allocator; nothing to do under another one.

    By itself glibc raises its threshold to the largest buffer that it has seen freed, at most 32 MiB. Then buffers of
    logits lie between small ones on the heap, which grows by holes: peak memory that follows the vocabulary, although no
    more than a chunk of logits is ever alive.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_MMAP_THRESHOLD, LARGE)
    libc.mallopt(_TRIM_THRESHOLD, KEPT)
