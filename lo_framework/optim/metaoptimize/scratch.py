"""Working memory of a step."""

from __future__ import annotations

import torch
from torch import Tensor


class Scratch:
    """Working memory, one chunk for each device, dtype and purpose."""

    def __init__(self) -> None:
        self._memory: dict[tuple[torch.device, torch.dtype, str], Tensor] = {}
        self._count = 0, torch.zeros((), device="cpu")

    def count(self, step: int) -> Tensor:
        """``step`` as torch's loops want it."""
        if self._count[0] != step:
            self._count = step, torch.tensor(float(step), device="cpu")
        return self._count[1]

    def of(self, device: torch.device, dtype: torch.dtype, size: int, purpose: str) -> Tensor:
        """Memory ``[size]``; for the same purpose the same, as far as it goes."""
        key = (device, dtype, purpose)
        memory = self._memory.get(key)
        if memory is None or memory.numel() < size:
            memory = self._memory[key] = torch.empty(size, device=device, dtype=dtype)
        return memory if memory.numel() == size else memory[:size]
