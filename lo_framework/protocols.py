"""The contracts that several rooms share. ``docs/design.md``, "Contracts", says why they are cut
this way.
"""

from __future__ import annotations

from lo_framework.learned.base import LearnedOptimizer, Theta
from lo_framework.optimizees.task import Batch, Buffers, Params, Task

__all__ = [
    "Batch",
    "Buffers",
    "LearnedOptimizer",
    "Params",
    "Task",
    "Theta",
]
