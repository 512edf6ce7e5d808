"""A bound on how many numbers a piece of code may ask for, checked before memory is taken."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_FACTORIES = {torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn}


class TooLarge(ValueError):
    """More numbers were asked for than the limit allows."""


class AtMost(TorchFunctionMode):
    """Inside ``with AtMost(n):`` new tensors may have ``n`` numbers in all; TooLarge otherwise.

    Models and learned optimizers draw their start in such tensors, so whoever builds one inside
    learns that it is too large without the memory, or the time, that it would take.
    """

    def __init__(self, numbers: int) -> None:
        super().__init__()
        self.left = numbers

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _FACTORIES:
            shape = kwargs.get("size", args[0] if args and isinstance(args[0], Sequence) else args)
            self.left -= math.prod(shape)
            if self.left < 0:
                raise TooLarge("too large")
        return func(*args, **kwargs)
