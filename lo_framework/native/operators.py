"""Operators over tasks, as cheap to call as Python allows: the tasks are the first dimension of all
tensors, and a ``vmap`` around them is taken off by hand.

``torch.library.custom_op`` does the same with a tenth of a millisecond more for each call, which at
these sizes is what the kernel itself takes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_pop_interpreter_stack
from torch.fx.experimental.proxy_tensor import get_proxy_mode

_LIBRARY = torch.library.Library("lo_framework", "FRAGMENT")
_functorch = torch._C._functorch


def operator(
    name: str, schema: str, run: Callable[..., Any], like: Callable[..., Any]
) -> Callable[..., Any]:
    """``run`` as a function that recordings see as one operation ``name``; ``like`` gives tensors
    of the same shapes as ``run`` does. It knows no derivative.
    """
    _LIBRARY.define(f"{name}{schema}")
    _LIBRARY.impl(name, run, "CPU")
    _LIBRARY.impl(name, run, "CUDA")
    torch.library.register_fake(f"lo_framework::{name}", like, lib=_LIBRARY)
    recorded = getattr(torch.ops.lo_framework, name).default

    def call(*arguments: Any) -> Any:
        # The dispatcher is needed only by those who look at what goes through it.
        watched = get_proxy_mode() is not None or torch.compiler.is_compiling()
        return (recorded if watched else run)(*arguments)

    return call


def levels() -> list[str]:
    """The transforms that are running, outermost first: "vmap", "grad", ..."""
    return [level.key().name.lower() for level in _functorch.get_interpreter_stack() or ()]


def over_vmaps(
    function: Callable[..., Any], given: Sequence[Tensor], lead: int = 0
) -> list[Tensor]:
    """``function(*given)``, where it wants exactly one dimension of tasks in front and the tensors
    have ``lead`` of them and those of the vmaps that are running.
    """
    top = _functorch.peek_interpreter_stack()
    if top is not None:
        level = top.level()
        inner = [_taken_off(x, level) for x in given]
        size = next(x.shape[0] for x, is_batched in inner if is_batched)
        full = [x if is_batched else x.expand(size, *x.shape) for x, is_batched in inner]
        with temporarily_pop_interpreter_stack():
            found = over_vmaps(function, full, lead + 1)
        return [_functorch._add_batch_dim(x, 0, level) for x in found]
    if lead == 1:
        return [*function(*given)]
    if lead == 0:
        return [x[0] for x in function(*(x[None] for x in given))]
    shape = given[0].shape[:lead]
    return [x.unflatten(0, shape) for x in function(*(x.flatten(0, lead - 1) for x in given))]


def _taken_off(x: Tensor, level: int) -> tuple[Tensor, bool]:
    """What a tensor of the vmap at ``level`` holds, tasks first, and whether it is of that vmap."""
    if not (_functorch.is_batchedtensor(x) and _functorch.maybe_get_level(x) == level):
        return x, False
    held, place = _functorch.get_unwrapped(x), _functorch.maybe_get_bdim(x)
    return (held.movedim(place, 0) if place else held), True
