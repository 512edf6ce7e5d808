"""One Hessian-free step over a plan: base step, trace and meta-gradient, each piece loaded once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lo_framework.optim.metaopt.arena import Piece, Plan, Run, chunk_size, compute_dtype
from lo_framework.optim.metaopt.bases import Base, Number
from lo_framework.optim.metaopt.kernels import Scratch, move, negative_direction

Groups = Sequence[dict[str, Any]]


class StepSizes:
    """The step sizes of one step, as pieces want them: numbers on a CPU, where looking is free, else tensors."""

    def __init__(self, beta: Tensor, as_numbers: bool) -> None:
        self._alphas = beta.exp()
        self._numbers = self._alphas.tolist() if as_numbers else None

    def of(self, piece: Piece, run: Run, lr: Number) -> Number:
        """Step size times ``lr``: a number, 0-d or one an element."""
        if piece.segments is None and self._numbers is not None:
            return lr * self._numbers[piece.block]
        return piece.spread(self._alphas.to(run.pack.device), compute_dtype(run.pack.dtype)) * lr


def multiplier(group: dict[str, Any]) -> Number:
    """``group["lr"]``, as a number unless an accelerator would have to be waited for."""
    lr = group["lr"]
    return float(lr) if not isinstance(lr, Tensor) or lr.device.type == "cpu" else lr


def hessian_free_step(
    plan: Plan, params: Sequence[Tensor], groups: Groups, ages: Sequence[int], base: Base, sizes: StepSizes,
    gamma: float, scratch: Scratch, z: Tensor | None,
) -> None:  # fmt: skip
    """Update parameters and state in place; ``z [m]`` (zeros, or None) gets the meta-gradients of before the update."""
    dots = []
    for run in plan.runs:
        group = groups[run.pack.group]
        lr, kappa, betas, eps = multiplier(group), group["weight_decay"], group["betas"], group["eps"]
        tensors = [params[i] for i in run.members]
        weights, grads = run.gathered(tensors), run.gathered([p.grad for p in tensors])  # type: ignore[misc]
        age, dtype = ages[run.members[0]] + 1, compute_dtype(run.pack.dtype)
        for piece, state in zip(run.pieces, run.states):
            stored = weights[piece.part]
            w, g, h = stored.to(dtype), grads[piece.part].to(dtype), state.get("h")
            if z is not None and h is not None:
                if piece.segments is None:
                    dots.append(torch.dot(h, g).to(z.device))
                else:
                    piece.add_sums(h * g, z)
            out = scratch.of(g, chunk_size(run.pack.device))
            minus_u = negative_direction(base.name, g, state, betas, eps, age, out)
            move(w, h, minus_u, sizes.of(piece, run, lr), kappa, gamma)
            if w is not stored:
                stored.copy_(w)
        run.write_back(weights, tensors)
    if z is not None and dots:
        z.index_add_(0, plan.owners, torch.stack(dots).to(z.dtype))


def reset_traces(plan: Plan, broken: Tensor) -> None:
    """Let the traces of the blocks ``broken [m]`` start anew."""
    for run in plan.runs:
        for piece, state in zip(run.pieces, run.states):
            state["h"].masked_fill_(piece.spread(broken.to(run.pack.device), torch.bool), 0.0)
