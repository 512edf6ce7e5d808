"""The update of a set of tensors with one alpha and one beta (arXiv 2605.04055, equations 1 to 4):

    p <- p - lr alpha ( m_hat / (sqrt(v_hat) + eps) + beta wd p )

by torch's fused loop where the tensors allow it, else written out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lo_framework.optim.fused import HAS_FUSED, fused_adamw, long_ago

State = dict[str, Tensor]


class Numbers(NamedTuple):
    """The numbers of one set at one step: ``rate`` is lr alpha, ``shrink`` is lr alpha beta wd; on
    an accelerator 0-d tensors.
    """

    rate: float | Tensor
    shrink: float | Tensor
    beta1: float
    beta2: float
    eps: float
    correction1: float  # 1 - beta1^t
    correction2: float


def update(
    params: Sequence[Tensor], grads: Sequence[Tensor], states: Sequence[State], n: Numbers
) -> None:
    """Update parameters and moments in place."""
    # moments are laid out as their parameter is
    fast = HAS_FUSED and all(
        p.dtype == g.dtype == state["exp_avg"].dtype and p.is_contiguous() and g.is_contiguous()
        for p, g, state in zip(params, grads, states)
    )
    if isinstance(n.rate, Tensor):
        fast = fast and n.rate.dtype == torch.float32  # what the fused loop takes
    elif n.rate == 0:
        fast = False
    if fast:
        return _fused(params, grads, states, n)
    for p, g, state in zip(params, grads, states):
        old = p.to(state["exp_avg"].dtype)
        p.copy_(old * (1.0 - n.shrink) - n.rate * direction(state, g, n))


def _fused(
    params: Sequence[Tensor], grads: Sequence[Tensor], states: Sequence[State], n: Numbers
) -> None:
    """Bias corrections are folded into the rate and eps, so that no tensor counts steps."""
    root = math.sqrt(n.correction2)
    lr, decay = n.rate * (root / n.correction1), 0.0
    if isinstance(lr, float) and isinstance(n.shrink, float):
        decay = n.shrink / lr
    else:
        torch._foreach_mul_(list(params), 1.0 - n.shrink)
    fused_adamw(
        params,
        grads,
        [s["exp_avg"] for s in states],
        [s["exp_avg_sq"] for s in states],
        long_ago(params[0].device),
        lr=lr,
        betas=(n.beta1, n.beta2),
        weight_decay=decay,
        eps=n.eps * root,
    )


def direction(state: State, g: Tensor | None, n: Numbers) -> Tensor:
    """Adam's direction m_hat / (sqrt(v_hat) + eps), once ``g`` is folded into the moments (None:
    of the moments as they are).
    """
    m, v = state["exp_avg"], state["exp_avg_sq"]
    if g is not None:
        g = g.to(m.dtype)
        m.lerp_(g, 1.0 - n.beta1)
        v.mul_(n.beta2).addcmul_(g, g, value=1.0 - n.beta2)
    return (m / n.correction1) / ((v / n.correction2).sqrt() + n.eps)
