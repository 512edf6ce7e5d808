"""Evaluating a training loop's loss without leaving a trace.

Inside :func:`preserved`, parameters may be moved and modules run; afterwards parameters, gradients,
buffers (running statistics) and torch's generators are bit for bit what they were. Buffers are
found without knowing the model: a hook on every module's forward copies those of a module and of
all in it before its first run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_forward_pre_hook,
)

from lo_framework.optim.base import hooked
from lo_framework.optim.sam.surroundings import Surroundings, is_writable


@contextmanager
def preserved(
    params: Sequence[Tensor], model: nn.Module | None = None
) -> Iterator[Callable[[], None]]:
    """Gives ``rewind``: call it before a pass that must draw the same random numbers as the others.

    Args:
        model: its buffers are protected from the start; of others those of modules that run.
    """
    surroundings = Surroundings(params, model, same_noise=True)
    home = [p.detach().clone() for p in params]
    known: dict[int, nn.Module] = {}  # held, so that no other gets its id
    kept: list[tuple[Tensor, Tensor]] = []
    replaced: dict[tuple[int, str], tuple[nn.Module, Tensor | None, list[Tensor | None]]] = {}

    def keep(module: nn.Module, _: Any) -> None:
        if id(module) in known:
            return
        for part in module.modules():
            if id(part) not in known:
                known[id(part)] = part
                buffers = part.named_buffers(recurse=False)
                kept.extend(
                    (buffer, buffer.detach().clone())
                    for _, buffer in buffers
                    if is_writable(buffer)
                )

    def replace(module: nn.Module, name: str, new: Tensor | None) -> None:
        """Some modules put a new tensor in the place of a buffer."""
        if name in module._buffers:
            _, _, news = replaced.setdefault(
                (id(module), name), (module, module._buffers[name], [])
            )
            news.append(new)

    hooks = (
        register_module_forward_pre_hook(keep),
        register_module_buffer_registration_hook(replace),
    )
    try:
        with hooked(*hooks), surroundings.kept():
            yield surroundings.rewind
    finally:
        with torch.no_grad():
            for p, x in zip(params, home):
                p.copy_(x)
            for buffer, copy in kept:
                buffer.copy_(copy)
        for (_, name), (module, first, news) in replaced.items():
            # else `functional_call` has taken its own away
            if any(module._buffers.get(name) is new for new in news):
                setattr(module, name, first)
        torch.clear_autocast_cache()


def as_outside(loss_fn: Callable[[Any], Any], kind: str) -> Callable[[Any], Any]:
    """A ``loss_fn`` under the autocast of a ``kind`` of device that is on now, whatever is on when
    it is called.

    Its casts are made anew in every call: parameters move between them.
    """
    on, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)

    def run(batch: Any) -> Any:
        torch.clear_autocast_cache()
        with torch.autocast(kind, dtype=dtype, enabled=on):
            return loss_fn(batch)

    return run
