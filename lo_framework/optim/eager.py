"""Steps that run as they are where ``torch.compile`` meets them.

A step of this package reads numbers, keeps plans of its own and calls compiled kernels by address:
traced, it would be compiled again and again, and come to other bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

Step = TypeVar("Step", bound=Callable[..., object])


def eager(step: Step) -> Step:
    """``step``, at which a graph breaks. What it calls may be compiled all the same: a closure's
    model, say.
    """
    # As `torch.compiler.disable`, which imports the compiler at once, where this waits for a step.
    return torch._disable_dynamo(step)  # type: ignore[return-value]
