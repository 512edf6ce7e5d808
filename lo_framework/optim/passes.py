"""Running a closure several times in one step, also under a ``torch.amp.GradScaler``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch

T = TypeVar("T")


class Passes:
    """Makes closures into passes: run with gradients enabled, and unscaled.

    A scaler unscales an optimizer's gradients once a step. To it, each pass is therefore an
    optimizer of its own, and its ``update`` hears of the overflows of every pass.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._keys: list[
            _Pass
        ] = []  # a scaler knows optimizers by identity, so these must outlive the step

    def of(self, closure: Callable[[], T], scaler: torch.amp.GradScaler | None) -> Callable[[], T]:
        """What runs the passes of one step."""
        count = 0

        def run() -> T:
            nonlocal count
            with torch.enable_grad():
                result = closure()
            if scaler is not None:
                if count == len(self._keys):
                    self._keys.append(_Pass(self._optimizer))
                scaler.unscale_(cast(torch.optim.Optimizer, self._keys[count]))
            count += 1
            return result

        return run


class _Pass:
    """All that a scaler looks at of an optimizer."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self._optimizer.param_groups
