"""The Hessian-free step in place: a handful of operations on one piece, which stays in cache between them.

The pure rules in ``bases`` are the reference. On a CPU torch's fused AdamW loop computes AdamW's direction in one pass:
started at zero with a step size of 1, it ends at ``-u``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lo_framework.optim.metaopt.bases import Number, State, one_minus_power

HAS_FUSED = hasattr(torch, "_fused_adamw_")


class Scratch:
    """One chunk of working memory for each device and dtype."""

    def __init__(self) -> None:
        self._held: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def of(self, like: Tensor, size: int) -> Tensor:
        """Memory for ``like``'s size, at most ``size`` elements; every call gives the same."""
        key = (like.device, like.dtype)
        if key not in self._held or self._held[key].numel() < like.numel():
            self._held[key] = torch.empty(max(size, like.numel()), device=like.device, dtype=like.dtype)
        return self._held[key][: like.numel()]


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


def _adamw(g: Tensor, state: State, betas: Sequence[float], eps: float, step: int, out: Tensor) -> Tensor:
    m, v = state["m"], state["v"]
    if out.device.type == "cpu" and HAS_FUSED:
        count = torch.tensor(float(step), device="cpu")
        torch._fused_adamw_(
            [out.zero_()], [g], [m], [v], [], [count], lr=1.0, beta1=betas[0], beta2=betas[1], weight_decay=0.0,
            eps=eps, amsgrad=False, maximize=False,
        )  # fmt: skip
        return out
    m.lerp_(g, 1.0 - betas[0])
    v.mul_(betas[1]).addcmul_(g, g, value=1.0 - betas[1])
    correction1, correction2 = float(one_minus_power(betas[0], step)), float(one_minus_power(betas[1], step))
    # -u = m / (-c1 (sqrt(v / c2) + eps))
    torch.sqrt(v, out=out).mul_(-correction1 / math.sqrt(correction2)).sub_(correction1 * eps)
    return torch.div(m, out, out=out)


def move(w: Tensor, h: Tensor | None, minus_u: Tensor, alpha: Number, kappa: float, gamma: float) -> None:
    """``w`` and the trace ``h`` (None: there is none) in place, given ``-u``, which is overwritten.

    ``alpha``: a number, or a tensor that broadcasts.
    """
    if kappa:
        minus_u.sub_(w, alpha=kappa)
    dw = minus_u.mul_(alpha)
    w.add_(dw)
    if h is None:
        return
    decay = gamma * (1.0 - kappa * alpha)
    if isinstance(decay, Tensor):
        torch.addcmul(dw, h, decay, out=h)
    else:
        torch.add(dw, h, alpha=decay, out=h)
