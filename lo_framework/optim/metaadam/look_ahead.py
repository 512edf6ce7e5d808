"""The parameters one step ahead as a function of alpha and beta, and the meta-gradient that comes
back through it:

    theta'_i = theta_i - lr_i alpha_k ( u_i + beta_k c_i theta_i )        (i in group k; arXiv 2605.04055, algorithm 2)
    d/d alpha_k = - sum_i lr_i <d_i, u_i + beta_k c_i theta_i>            with d_i = d meta-loss / d theta'_i
    d/d beta_k  = - sum_i lr_i alpha_k c_i <d_i, theta_i>

so the graph of the meta-loss ends at theta', and two inner products a tensor take its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lo_framework.optim.metaadam.adam_step import Numbers, State, adam_direction


class Move(NamedTuple):
    """Of one tensor: its group, ``theta`` and ``direction`` flat, ``lr`` and ``decay`` (c)."""

    token: int
    theta: Tensor
    direction: Tensor
    lr: float
    decay: float


def direction_of(g: Tensor | None, state: State, n: Numbers) -> Tensor:
    """Adam's direction: with ``g`` folded into copies of the moments, or of the moments as they are
    (None).
    """
    m, v = state["exp_avg"], state["exp_avg_sq"]
    if g is not None:
        g = g.to(m.dtype)
        m = m.lerp(g, 1.0 - n.beta1)
        v = (v * n.beta2).addcmul_(g, g, value=1.0 - n.beta2)
    return adam_direction(m, v, n)


def ahead(move: Move, alpha: float, beta: float) -> Tensor:
    """theta'."""
    step = move.direction + (beta * move.decay) * move.theta
    return move.theta - (move.lr * alpha) * step


def pulled_back(
    moves: Sequence[Move], slopes: Sequence[Tensor], alpha: Tensor, beta: Tensor
) -> tuple[Tensor, Tensor]:
    """Derivatives by alpha and beta, ``[G]``, from ``slopes``, those by theta'."""
    by_alpha, by_beta = torch.zeros_like(alpha), torch.zeros_like(beta)
    for move, slope in zip(moves, slopes, strict=True):
        d = slope.reshape(-1).to(move.theta.dtype)
        along, decayed = (
            torch.dot(d, move.direction).to(alpha),
            move.decay * torch.dot(d, move.theta).to(alpha),
        )
        by_alpha[move.token] -= move.lr * (along + beta[move.token] * decayed)
        by_beta[move.token] -= move.lr * alpha[move.token] * decayed
    return by_alpha, by_beta
