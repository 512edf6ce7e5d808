"""A task over one flat vector of parameters, and K tasks at once, by ``vmap`` where the task allows
it, else by a plain loop.

A task forbids ``vmap`` by ``vmappable = False`` (recurrent layers of ``torch.nn``, Python control
flow that looks at data). The loop gives the same numbers and the same derivatives, at the price of
K times the calls.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import grad_and_value, vmap
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from lo_framework.episode import Place
from lo_framework.layout import Layout
from lo_framework.learned.base import State
from lo_framework.optimizees.task import Batch, Task


def over_tasks(
    task: Task, function: Callable[..., Any], chunk_size: int | None = None
) -> Callable[..., Any]:
    """Lift ``function`` of one task's tensors to tensors with K tasks in front, ``chunk_size`` of
    them at once. One task alone needs no ``vmap``, in which every operation costs more, but for the
    first time: what ``vmap`` refuses (random operations, say) is refused for one task as for many.
    """

    def looped(*arguments: Any) -> Any:
        leaves, spec = tree_flatten(arguments)
        rows = [
            function(*tree_unflatten([x[k] for x in leaves], spec)) for k in range(len(leaves[0]))
        ]
        return tree_map(lambda *parts: torch.stack(parts), *rows)

    together = vmap(function, chunk_size=chunk_size) if task.vmappable else looped

    checked = not task.vmappable

    def lifted(*arguments: Any) -> Any:
        nonlocal checked
        leaves, spec = tree_flatten(arguments)
        if len(leaves[0]) > 1:
            return together(*arguments)
        if not checked:
            together(*arguments)
            checked = True
        outputs = function(*tree_unflatten([x.squeeze(0) for x in leaves], spec))
        return tree_map(lambda x: x.unsqueeze(0), outputs)

    return lifted


def is_transformed() -> bool:
    """Whether a transform of ``torch.func`` is running: plain autograd cannot be used in it."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def is_watched() -> bool:
    """Whether a transform or a recording is running: no number may be looked at."""
    return is_transformed() or get_proxy_mode() is not None


class FlatTask:
    """Losses of K copies of ``task`` as functions of flat parameters ``[K, N]``."""

    def __init__(self, task: Task, layout: Layout) -> None:
        self.task, self.layout = task, layout
        self._losses = over_tasks(task, self.loss)
        self._gradients = over_tasks(task, grad_and_value(self.loss, has_aux=True))

    def loss(
        self, params: Tensor, buffers: State, batch: Batch, noise: Tensor
    ) -> tuple[Tensor, State]:
        """Loss and new buffers of one task at ``params [N]``."""
        return self.task.loss(self.layout.unflatten(params), buffers, batch, noise)

    def losses(self, place: Place) -> tuple[Tensor, State]:
        """Losses ``[K]`` and the new buffers."""
        return self._losses(*place)

    def gradients(self, place: Place, *, through: bool) -> tuple[Tensor, Tensor, State]:
        """Losses ``[K]``, their gradients ``[K, N]`` and the new buffers, detached unless
        ``through`` and a graph is kept.

        No row's loss depends on another row's parameters, so one backward pass from all of them
        gives every task its own gradient, without the levels and the rules that differentiation
        inside vmap goes through. Only inside a transform that way is closed.
        """
        inside = is_transformed()
        through = through and (inside or (place.params.requires_grad and torch.is_grad_enabled()))
        at = place.params if through else place.params.detach()
        if inside:
            grads, (loss, buffers) = self._gradients(at, *place[1:])
        else:
            with torch.enable_grad():
                at = at if through else at.requires_grad_()
                loss, buffers = self.losses(place._replace(params=at))
                grads = torch.zeros_like(at)
                if loss.requires_grad:
                    (grads,) = torch.autograd.grad(
                        loss,
                        at,
                        torch.ones_like(loss),
                        create_graph=through,
                        materialize_grads=True,
                    )
        if through:
            return loss, grads, buffers
        return loss.detach(), grads.detach(), {name: x.detach() for name, x in buffers.items()}
