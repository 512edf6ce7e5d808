"""Derivatives for exact traces: gradients with their graph from a closure, and Hessian-vector
products.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lo_framework.errors import UserError
from lo_framework.optim.backward_watch import BackwardWatch

NEEDS = (
    "needs a closure that returns the loss without calling backward (or calls "
    "backward(create_graph=True)): second derivatives are taken of it"
)


def product(
    grads: Sequence[Tensor],
    params: Sequence[Tensor],
    vector: Sequence[Tensor],
    *,
    create_graph: bool = False,
) -> list[Tensor]:
    """The derivative of ``<grads, vector>`` by the parameters: a Hessian-vector product where
    ``grads`` are gradients.

    The graph is kept for further products.
    """
    with torch.enable_grad():
        inner = sum((g * v.to(g.dtype)).sum() for g, v in zip(grads, vector))
        if not isinstance(inner, Tensor) or not inner.requires_grad:  # linear in the parameters
            return [torch.zeros_like(p) for p in params]
        products = torch.autograd.grad(
            inner, params, retain_graph=True, create_graph=create_graph, allow_unused=True
        )
    return [torch.zeros_like(p) if x is None else x for p, x in zip(params, products)]


def closure_gradients(
    closure: Callable[[], Any] | None, params: Sequence[Tensor], owner: str, *, twice: bool
) -> tuple[Any, list[Tensor | None]]:
    """What the closure returns, and the gradients with their graph; ``.grad`` gets them without it.

    Args:
        twice: whether the graph will be differentiated. Gradients of before are then dropped; else
            the closure may also call a plain backward, which adds to them.

    Raises:
        UserError: the closure leaves nothing to differentiate (twice).
    """
    if closure is None:
        raise UserError(f"{owner} {NEEDS}")
    before = [p.grad for p in params]
    if twice:
        for p in params:
            p.grad = None
    try:
        with torch.enable_grad(), BackwardWatch(params) as watch:
            result = closure()
        grads = [p.grad for p in params]
        if not watch.called:
            grads = _by_loss(result, params, owner, twice)
        elif twice and not any(g.requires_grad for g in grads if g is not None):
            raise UserError(f"{owner} {NEEDS}; it called backward without create_graph")
    except BaseException:
        for p, g in zip(params, before):
            p.grad = g
        raise
    for p, g in zip(params, grads):
        p.grad = None if g is None else g.detach()
    return result.detach() if isinstance(result, Tensor) else result, grads


def _by_loss(loss: Any, params: Sequence[Tensor], owner: str, twice: bool) -> list[Tensor | None]:
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
        raise UserError(f"{owner} {NEEDS}")
    leaves = [p for p in params if p.requires_grad]
    with torch.enable_grad():
        grads = iter(torch.autograd.grad(loss, leaves, create_graph=twice, allow_unused=True))
    return [next(grads) if p.requires_grad else None for p in params]
