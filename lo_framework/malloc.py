"""What is freed stays with the process.

The C library gives large blocks back to the system as they are freed, and a step that makes tensors
of a megabyte then pays a page fault for every four kilobytes of them: up to twice its time.
"""

from __future__ import annotations

import ctypes
import os
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_OWN = {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"}  # of people
_LARGEST = 32 << 20  # bytes; glibc takes no more


def keep_freed_memory() -> None:
    """For processes of our own: a setting of the whole process. It does nothing where the C library
    has no such setting, or where somebody has chosen one by its environment variables.
    """
    if not sys.platform.startswith("linux") or _OWN & os.environ.keys():
        return
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(_MMAP_THRESHOLD, _LARGEST)
        set_option(_TRIM_THRESHOLD, 2**31 - 1)
