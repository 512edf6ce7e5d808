"""The Hessian-free step over a plan: base step, trace and meta-gradient in place, each piece loaded
once and kept in cache between a handful of operations.

The pure rules in ``rules`` are the reference. On a CPU torch's fused AdamW loop computes AdamW's
direction in one pass: started at zero with a step size of 1, it ends at ``-u``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from lo_framework.optim.fused import HAS_FUSED, fused_adamw, one_minus_power
from lo_framework.optim.metaoptimize.rules import Number, Numbers, State
from lo_framework.optim.metaoptimize.scratch import Scratch
from lo_framework.optim.metaoptimize.store import (
    Piece,
    Plan,
    Run,
    Work,
    compute_dtype,
)


class StepSizes:
    """The step sizes of one step, as pieces want them: numbers on a CPU, where looking is free,
    else tensors.
    """

    def __init__(self, beta: Tensor, as_numbers: bool) -> None:
        self._alphas = beta.exp()
        self._numbers = self._alphas.tolist() if as_numbers else None

    def of(self, piece: Piece, run: Run, lr: Number) -> Number:
        """Step size times ``lr``: a number, 0-d or one an element."""
        if piece.ids is None and self._numbers is not None:
            return lr * self._numbers[piece.block]
        return piece.spread(self._alphas.to(run.pack.device), compute_dtype(run.pack.dtype), lr)


def hessian_free_step(
    works: Iterable[Work],
    owners: Tensor,
    base: str,
    sizes: StepSizes,
    scratch: Scratch,
    z: Tensor | None,
) -> None:
    """Update parameters and state in place; ``z [m]`` (zeros, or None) gets the meta-gradients of
    before the update, of pieces with one block at ``owners``.
    """
    dots = []
    for run, weights, grads, lr, n in works:
        dtype = compute_dtype(run.pack.dtype)
        out = scratch.of(run.pack.device, dtype, max(run.sizes), "change")
        count = scratch.count(int(n.step))
        parts = weights.split(run.sizes), grads.split(run.sizes)
        for piece, state, size, stored, grad in zip(run.pieces, run.states, run.sizes, *parts):
            w, g = stored.to(dtype), grad.to(dtype)
            if z is not None and run.counts and "h" in state:
                if piece.ids is None:
                    dots.append(torch.dot(state["h"], g).to(z.device))
                else:
                    piece.add_sums(state["h"] * g, z)
            alpha = sizes.of(piece, run, lr)
            update(base, w, g, state, alpha, n, count, out if len(out) == size else out[:size])
            if w is not stored:
                stored.copy_(w)
    if z is not None and dots:
        z.index_add_(0, owners, torch.stack(dots).to(z.dtype))


def reset_traces(plan: Plan, broken: Tensor) -> None:
    """Let the traces of the blocks ``broken [m]`` start anew."""
    for run in plan.runs:
        for piece, state in zip(run.pieces, run.states):
            state["h"].masked_fill_(piece.spread(broken.to(run.pack.device), torch.bool), 0.0)


def update(
    name: str,
    w: Tensor,
    g: Tensor,
    state: State,
    alpha: Number,
    n: Numbers,
    count: Tensor,
    out: Tensor,
) -> None:
    """Move weights, base state and trace (if ``state`` has one) by one step, in place.

    ``count`` is the step as a tensor on the CPU, ``out`` scratch memory.
    """
    h = state.get("h")
    if name != "adamw" or isinstance(alpha, Tensor) or not _is_fused(out):
        move(w, h, negative_direction(name, g, state, n, out), alpha, n)
        return
    # AdamW's loop makes w's whole change, if it starts at the decay and has the step size itself.
    if n.kappa:
        torch.mul(w, -alpha * n.kappa, out=out)
    else:
        out.zero_()
    w.add_(_fused(g, state, n, count, alpha, out))
    if h is not None:
        torch.add(out, h, alpha=n.gamma * (1.0 - n.kappa * alpha), out=h)


def negative_direction(name: str, g: Tensor, state: State, n: Numbers, out: Tensor) -> Tensor:
    """``-u`` into ``out``; the moments in ``state`` are updated in place."""
    betas = n.betas
    match name:
        case "adamw" if _is_fused(out):
            count = torch.tensor(float(n.step), device="cpu")
            return _fused(g, state, n, count, 1.0, out.zero_())
        case "adamw":
            m, v = state["m"].lerp_(g, 1.0 - betas[0]), state["v"]
            v.mul_(betas[1]).addcmul_(g, g, value=1.0 - betas[1])
            correction1, correction2 = (float(one_minus_power(beta, n.step)) for beta in betas)
            # -u = m / (-c1 (sqrt(v / c2) + eps))
            torch.sqrt(v, out=out).mul_(-correction1 / math.sqrt(correction2))
            return torch.div(m, out.sub_(correction1 * n.eps), out=out)
        case "rmsprop":
            v = state["v"].mul_(betas[0]).addcmul_(g, g, value=1.0 - betas[0])
            unbias = float(1.0 / one_minus_power(betas[0], n.step))
            torch.mul(v, unbias, out=out).add_(n.eps).sqrt_()
            return torch.div(g, out, out=out).neg_()
        case "lion":
            torch.lerp(g, state["m"], betas[0], out=out).sign_().neg_()
            state["m"].lerp_(g, 1.0 - betas[1])
            return out
        case "sgdm":
            return torch.neg(state["m"].lerp_(g, 1.0 - betas[0]), out=out)
    return torch.neg(g, out=out)  # sgd


def _is_fused(out: Tensor) -> bool:
    return HAS_FUSED and out.device.type == "cpu"


def _fused(g: Tensor, state: State, n: Numbers, count: Tensor, alpha: float, out: Tensor) -> Tensor:
    """Subtract ``alpha u`` from ``out``."""
    m, v = [state["m"]], [state["v"]]
    fused_adamw([out], [g], m, v, count, lr=alpha, betas=n.betas, weight_decay=0.0, eps=n.eps)
    return out


def move(w: Tensor, h: Tensor | None, minus_u: Tensor, alpha: Number, n: Numbers) -> None:
    """Move ``w`` and the trace ``h`` (None: there is none) in place, given ``-u``, which is
    overwritten.

    ``alpha``: a number, or a tensor that broadcasts.
    """
    if n.kappa:
        minus_u.sub_(w, alpha=n.kappa)
    dw = minus_u.mul_(alpha)
    w.add_(dw)
    if h is None:
        return
    if not isinstance(alpha, Tensor):
        torch.add(dw, h, alpha=n.gamma * (1.0 - n.kappa * alpha), out=h)
    elif n.kappa:
        torch.addcmul(dw, h, torch.rsub(alpha, n.gamma, alpha=n.gamma * n.kappa), out=h)
    else:
        torch.add(dw, h, alpha=n.gamma, out=h)
