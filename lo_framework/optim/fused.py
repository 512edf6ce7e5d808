"""AdamW's arithmetic that several optimizers share: torch's fused loop, its clock, and bias
corrections.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

HAS_FUSED = hasattr(torch, "_fused_adamw_")


@cache
def long_ago(device: torch.device) -> Tensor:
    """The clock of a loop whose own bias corrections are 1: the caller has folded his into the
    learning rate and eps.
    """
    return torch.full((), 1e30, device=device)


def one_minus_power(beta: float, step: int | Tensor) -> float | Tensor:
    """``1 - beta ** step`` without cancellation."""
    if isinstance(step, Tensor):
        return -torch.expm1(step * math.log(beta)) if beta > 0 else torch.ones_like(step)
    return -math.expm1(step * math.log(beta)) if beta > 0 else 1.0


def fused_adamw(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    m: Sequence[Tensor],
    v: Sequence[Tensor],
    clock: Tensor,
    *,
    lr: float | Tensor,
    betas: Sequence[float],
    weight_decay: float,
    eps: float,
) -> None:
    """Update ``params`` and their moments in place by torch's loop; ``clock`` holds the step of all
    of them.
    """
    torch._fused_adamw_(  # type: ignore[call-overload]
        params,
        grads,
        m,
        v,
        [],
        [clock] * len(params),
        lr=lr,
        beta1=betas[0],
        beta2=betas[1],
        weight_decay=weight_decay,
        eps=eps,
        amsgrad=False,
        maximize=False,
    )
