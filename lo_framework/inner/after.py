"""A second look at the point after an update: what objectives about steps need
(`objectives.steps`).

The gradient there, on a second training batch, carries a meta-gradient of its own: it is taken at
parameters that the learned optimizer made, and its derivative by them is a Hessian-vector product.
First-order mode keeps that derivative as well: there the gradient that the optimizer saw is a
constant, and without it nothing of the term would be left to learn from. Under ES and PES no graph
is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lo_framework.layout import Layout
from lo_framework.learned.base import State
from lo_framework.objectives.terms import cosine
from lo_framework.protocols import Batch

LossesOf = Callable[[Tensor, State, Batch, Tensor], tuple[Tensor, State]]


class After(NamedTuple):
    """Zeros where nothing was asked for. A task that diverged has infinite losses and squares."""

    before: Tensor  # [K] held-out loss before the update, on the batch of that after it; a constant
    second: Tensor  # [K] training loss after the update, on a second batch
    squares: Tensor  # [K, S] mean square of its gradient, by tensor
    # [K, S] between it and the gradient that the optimizer saw; 0 where one of them is zero
    cosines: Tensor


def look(
    needs: tuple[str, ...],
    layout: Layout,
    losses_of: LossesOf,
    start: Tensor,
    end: Tensor,
    buffers: State,
    held: Batch,
    second: Batch,
    noise: Tensor,
    seen: Tensor,
    alive: Tensor,
) -> After:
    """From parameters ``start``, ``end`` ``[K, N]`` and the gradient ``seen [K, N]`` that led from
    one to the other.

    Both sides of the step have the buffers that it left and the same dropout: they differ by
    parameters alone.
    """
    before = loss = torch.zeros_like(start[:, 0]).detach()
    squares = cosines = start.new_zeros(len(start), layout.num)
    if "loss_decrease" in needs:
        with torch.no_grad():
            before, _ = losses_of(start, buffers, held, noise)
    if "gradient" in needs:
        loss, grads = _gradient(losses_of, end, buffers, second, noise)
        squares = layout.mean(grads * grads)
        cosines = cosine(layout.mean(seen * grads), layout.mean(seen * seen), squares)
    elif "gen_gap" in needs:
        loss, _ = losses_of(end, buffers, second, noise)
    rows = alive[:, None]
    return After(
        torch.where(alive, before, torch.inf),
        torch.where(alive, loss, torch.inf),
        torch.where(rows, squares, torch.inf),
        torch.where(rows, cosines, -1.0),
    )


def _gradient(
    losses_of: LossesOf, at: Tensor, buffers: State, batch: Batch, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """Losses ``[K]`` and gradients ``[K, N]``, with a graph where one is kept.

    No row's loss depends on another row's parameters: one backward pass from all of them gives each
    its own gradient.
    """
    through = at.requires_grad and torch.is_grad_enabled()
    with torch.enable_grad():
        at = at if through else at.detach().requires_grad_()
        loss, _ = losses_of(at, buffers, batch, noise)
        grads = torch.zeros_like(at)
        if loss.requires_grad:
            (grads,) = torch.autograd.grad(
                loss, at, torch.ones_like(loss), create_graph=through, materialize_grads=True
            )
    return (loss, grads) if through else (loss.detach(), grads.detach())
