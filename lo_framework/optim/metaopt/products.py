"""Gradients with a graph from a training loop's closure, and Hessian-vector products on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lo_framework.spec import UserError

NEEDS = (
    "needs a closure that returns the loss without calling backward (or calls backward(create_graph=True)): "
    "second derivatives are taken of it"
)


def differentiable_gradients(
    closure: Callable[[], Any], params: Sequence[Tensor], owner: str
) -> tuple[Any, list[Tensor | None]]:
    """What the closure returns, and the gradients with their graph; ``.grad`` gets them without it.

    Raises:
        UserError: the closure leaves nothing to differentiate twice.
    """
    before = [p.grad for p in params]
    for p in params:
        p.grad = None
    try:
        result, grads = _with_graph(closure, params, owner)
    except BaseException:
        for p, g in zip(params, before):
            p.grad = g
        raise
    for p, g in zip(params, grads):
        p.grad = None if g is None else g.detach()
    return result.detach() if isinstance(result, Tensor) else result, grads


def _with_graph(
    closure: Callable[[], Any], params: Sequence[Tensor], owner: str
) -> tuple[Any, list[Tensor | None]]:
    with torch.enable_grad():
        result = closure()
        grads = [p.grad for p in params]
        if any(g is not None for g in grads):
            if not any(g.requires_grad for g in grads if g is not None):
                raise UserError(f"{owner} {NEEDS}; it called backward without create_graph")
        else:
            if not isinstance(result, Tensor) or result.numel() != 1 or not result.requires_grad:
                raise UserError(f"{owner} {NEEDS}")
            leaves = [p for p in params if p.requires_grad]
            found = iter(torch.autograd.grad(result, leaves, create_graph=True, allow_unused=True))
            grads = [next(found) if p.requires_grad else None for p in params]
    return result, grads


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
        found = torch.autograd.grad(
            inner, params, retain_graph=True, create_graph=create_graph, allow_unused=True
        )
    return [torch.zeros_like(p) if x is None else x for p, x in zip(params, found)]
