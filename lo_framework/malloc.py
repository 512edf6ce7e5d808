"""What is freed stays with the process.

The C library gives large blocks back to the system as they are freed, and a step that makes tensors
of a megabyte then pays a page fault for every four kilobytes of them.
"""

from __future__ import annotations

import ctypes
import os
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_VARIABLES = {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"}  # by which people choose
_LARGEST = 32 << 20  # bytes; glibc takes no more


def keep_freed_memory() -> None:
    """Have the C library keep what is freed, in all of this process: for programs, not for a
    library. It does nothing where that has no such setting, or where an environment variable of the
    library says otherwise.
    """
    if not sys.platform.startswith("linux") or _VARIABLES & os.environ.keys():
        return
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(_MMAP_THRESHOLD, _LARGEST)
        set_option(_TRIM_THRESHOLD, 2**31 - 1)
