"""Evaluating a training loop's loss without leaving a trace.

Inside :func:`untouched`, parameters may be moved and modules run; afterwards parameters, gradients, buffers (running
statistics) and generators are bit for bit what they were. Buffers are found without knowing the model: a hook on every
module's forward copies those of a module before its first run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from lo_framework.optim.closure_landscape import Surroundings

Kept = dict[tuple[int, str], tuple[nn.Module, str, Tensor, Tensor]]


@contextmanager
def untouched(params: Sequence[Tensor]) -> Iterator[Callable[[], None]]:
    """Gives ``rewind``: call it before a pass that must draw the same random numbers as the others."""
    surroundings = Surroundings(params, None, same_noise=True)
    home = [p.detach().clone() for p in params]
    kept: Kept = {}

    def keep(module: nn.Module, _: Any) -> None:
        for name, buffer in module.named_buffers(recurse=False):
            key = id(module), name
            if key not in kept:
                kept[key] = module, name, buffer, buffer.detach().clone()

    hook = register_module_forward_pre_hook(keep)
    try:
        with surroundings.kept():
            yield surroundings.rewind
    finally:
        hook.remove()
        with torch.no_grad():
            for p, x in zip(params, home):
                p.copy_(x)
            for module, name, buffer, copy in kept.values():
                buffer.copy_(copy)
                if getattr(module, name) is not buffer:  # some modules put a new tensor in the place of a buffer
                    setattr(module, name, buffer)
        torch.clear_autocast_cache()
