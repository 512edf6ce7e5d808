"""How much memory this process takes: as Linux counts it, and as torch counts it on CUDA."""

from __future__ import annotations

import ctypes
import gc
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Memory(NamedTuple):
    """Bytes held before some work, and the most that were held during it."""

    before: float
    peak: float

    @property
    def above(self) -> float:
        """What the work took; nan where the system does not tell."""
        return self.peak - self.before


def memory_of(work: Callable[[], object], device: torch.device) -> Memory:
    """Do ``work`` and watch this process; what it freed earlier goes back to the system first.

    nan on a system other than Linux, or in a container that hides ``/proc``, for a CPU.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return Memory(float(before), float(torch.cuda.max_memory_allocated(device)))
    if sys.platform.startswith("linux"):
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
    before_work = _status("VmRSS")
    try:
        _CLEAR.write_text("5")  # VmHWM begins again at what is held now
    except OSError:
        before_work = math.nan
    work()
    # The system may have taken pages back meanwhile: there is no peak below what was held.
    return Memory(before_work, max(before_work, _status("VmHWM"), _status("VmRSS")))


def _status(field: str) -> float:
    """A size of this process in bytes, nan where it is not told."""
    try:
        (kib,) = re.findall(rf"^{field}:\s*(\d+) kB$", _STATUS.read_text(), re.M)
    except (OSError, ValueError):
        return math.nan
    return 1024.0 * int(kib)
