"""The Hessian-free step in place: a handful of operations on one piece, which stays in cache
between them.

The pure rules in ``bases`` are the reference. On a CPU torch's fused AdamW loop computes AdamW's
direction in one pass: started at zero with a step size of 1, it ends at ``-u``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lo_framework.optim.fused import HAS_FUSED, fused_adamw, one_minus_power
from lo_framework.optim.metaopt.bases import Number, State


class Scratch:
    """Working memory, one chunk for each device, dtype and purpose."""

    def __init__(self) -> None:
        self._held: dict[tuple[torch.device, torch.dtype, str], Tensor] = {}
        self._count = 0, torch.zeros((), device="cpu")

    def count(self, step: int) -> Tensor:
        """``step`` as torch's loops want it."""
        if self._count[0] != step:
            self._count = step, torch.tensor(float(step), device="cpu")
        return self._count[1]

    def of(self, device: torch.device, dtype: torch.dtype, size: int, purpose: str) -> Tensor:
        """Memory ``[size]``; for the same purpose the same, as far as it goes."""
        key = (device, dtype, purpose)
        held = self._held.get(key)
        if held is None or held.numel() < size:
            held = self._held[key] = torch.empty(size, device=device, dtype=dtype)
        return held if held.numel() == size else held[:size]


def update(
    name: str,
    w: Tensor,
    g: Tensor,
    state: State,
    alpha: Number,
    kappa: float,
    gamma: float,
    betas: Sequence[float],
    eps: float,
    step: int,
    count: Tensor,
    out: Tensor,
) -> None:
    """One step of weights, base state and trace (if ``state`` has one) in place.

    ``count`` is ``step`` as a tensor on the CPU, ``out`` scratch memory.
    """
    h = state.get("h")
    if name != "adamw" or isinstance(alpha, Tensor) or not _is_fused(out):
        move(w, h, negative_direction(name, g, state, betas, eps, step, out), alpha, kappa, gamma)
        return
    # AdamW's loop makes w's whole change, if it starts at the decay and has the step size itself.
    if kappa:
        torch.mul(w, -alpha * kappa, out=out)
    else:
        out.zero_()
    w.add_(_fused(g, state, betas, eps, count, alpha, out))
    if h is not None:
        torch.add(out, h, alpha=gamma * (1.0 - kappa * alpha), out=h)


def negative_direction(
    name: str, g: Tensor, state: State, betas: Sequence[float], eps: float, step: int, out: Tensor
) -> Tensor:
    """``-u`` into ``out``; the moments in ``state`` are updated in place."""
    if name == "adamw":
        return _adamw(g, state, betas, eps, step, out)
    if name == "rmsprop":
        v = state["v"].mul_(betas[0]).addcmul_(g, g, value=1.0 - betas[0])
        torch.mul(v, float(1.0 / one_minus_power(betas[0], step)), out=out).add_(eps).sqrt_()
        return torch.div(g, out, out=out).neg_()
    if name == "lion":
        c, rho = betas
        torch.lerp(g, state["m"], c, out=out).sign_().neg_()
        state["m"].lerp_(g, 1.0 - rho)
        return out
    if name == "sgdm":
        return torch.neg(state["m"].lerp_(g, 1.0 - betas[0]), out=out)
    return torch.neg(g, out=out)


def _adamw(
    g: Tensor, state: State, betas: Sequence[float], eps: float, step: int, out: Tensor
) -> Tensor:
    if _is_fused(out):
        return _fused(
            g, state, betas, eps, torch.tensor(float(step), device="cpu"), 1.0, out.zero_()
        )
    m, v = state["m"], state["v"]
    m.lerp_(g, 1.0 - betas[0])
    v.mul_(betas[1]).addcmul_(g, g, value=1.0 - betas[1])
    correction1, correction2 = (
        float(one_minus_power(betas[0], step)),
        float(one_minus_power(betas[1], step)),
    )
    # -u = m / (-c1 (sqrt(v / c2) + eps))
    torch.sqrt(v, out=out).mul_(-correction1 / math.sqrt(correction2)).sub_(correction1 * eps)
    return torch.div(m, out, out=out)


def _is_fused(out: Tensor) -> bool:
    return HAS_FUSED and out.device.type == "cpu"


def _fused(
    g: Tensor,
    state: State,
    betas: Sequence[float],
    eps: float,
    count: Tensor,
    alpha: float,
    out: Tensor,
) -> Tensor:
    """Subtracts ``alpha u`` from ``out``."""
    fused_adamw(
        [out],
        [g],
        [state["m"]],
        [state["v"]],
        count,
        lr=alpha,
        betas=(betas[0], betas[1]),
        weight_decay=0.0,
        eps=eps,
    )
    return out


def move(
    w: Tensor, h: Tensor | None, minus_u: Tensor, alpha: Number, kappa: float, gamma: float
) -> None:
    """``w`` and the trace ``h`` (None: there is none) in place, given ``-u``, which is overwritten.

    ``alpha``: a number, or a tensor that broadcasts.
    """
    if kappa:
        minus_u.sub_(w, alpha=kappa)
    dw = minus_u.mul_(alpha)
    w.add_(dw)
    if h is None:
        return
    if isinstance(alpha, Tensor) and kappa:
        torch.addcmul(dw, h, torch.rsub(alpha, gamma, alpha=gamma * kappa), out=h)
    else:
        torch.add(
            dw,
            h,
            alpha=gamma if isinstance(alpha, Tensor) else gamma * (1.0 - kappa * alpha),
            out=h,
        )
