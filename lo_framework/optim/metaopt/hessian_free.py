"""One Hessian-free step over a plan: base step, trace and meta-gradient, each piece loaded once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lo_framework.optim.metaopt import kernels
from lo_framework.optim.metaopt.arena import Piece, Plan, Run, compute_dtype
from lo_framework.optim.metaopt.bases import Base, Number
from lo_framework.optim.metaopt.kernels import Scratch

Groups = Sequence[dict[str, Any]]


class StepSizes:
    """The step sizes of one step, as pieces want them: numbers on a CPU, where looking is free,
    else tensors.
    """

    def __init__(self, beta: Tensor, as_numbers: bool) -> None:
        self._alphas = beta.exp()
        self._numbers = self._alphas.tolist() if as_numbers else None

    def of(self, piece: Piece, run: Run, lr: Number) -> Number:
        """Step size times ``lr``: a number, 0-d or one an element."""
        if piece.segments is None and self._numbers is not None:
            return lr * self._numbers[piece.block]
        return piece.spread(self._alphas.to(run.pack.device), compute_dtype(run.pack.dtype), lr)


def multiplier(group: dict[str, Any]) -> Number:
    """``group["lr"]``, as a number unless an accelerator would have to be waited for."""
    lr = group["lr"]
    return float(lr) if not isinstance(lr, Tensor) or lr.device.type == "cpu" else lr


def hessian_free_step(
    plan: Plan,
    params: Sequence[Tensor],
    groups: Groups,
    ages: Sequence[int],
    base: Base,
    sizes: StepSizes,
    gamma: float,
    scratch: Scratch,
    z: Tensor | None,
) -> None:
    """Update parameters and state in place; ``z [m]`` (zeros, or None) gets the meta-gradients of
    before the update.
    """
    dots = []
    for run in plan.runs:
        group = groups[run.pack.group]
        lr, kappa, betas, eps = (
            multiplier(group),
            group["weight_decay"],
            group["betas"],
            group["eps"],
        )
        tensors = [params[i] for i in run.members]
        weights, grads = run.loaded(tensors, scratch)
        age, device, dtype = (
            ages[run.members[0]] + 1,
            run.pack.device,
            compute_dtype(run.pack.dtype),
        )
        out, count = scratch.of(device, dtype, max(run.sizes), "change"), scratch.count(age)
        parts = weights.split(run.sizes), grads.split(run.sizes)
        for piece, state, size, stored, grad in zip(run.pieces, run.states, run.sizes, *parts):
            w, g = stored.to(dtype), grad.to(dtype)
            if z is not None and "h" in state:
                if piece.segments is None:
                    dots.append(torch.dot(state["h"], g).to(z.device))
                else:
                    piece.add_sums(state["h"] * g, z)
            alpha = sizes.of(piece, run, lr)
            own = out if out.shape[0] == size else out[:size]
            kernels.update(base.name, w, g, state, alpha, kappa, gamma, betas, eps, age, count, own)
            if w is not stored:
                stored.copy_(w)
        run.unload(weights, tensors)
    if z is not None and dots:
        z.index_add_(0, plan.owners, torch.stack(dots).to(z.dtype))


def reset_traces(plan: Plan, broken: Tensor) -> None:
    """Let the traces of the blocks ``broken [m]`` start anew."""
    for run in plan.runs:
        for piece, state in zip(run.pieces, run.states):
            state["h"].masked_fill_(piece.spread(broken.to(run.pack.device), torch.bool), 0.0)
