"""Base update rules: how a gradient becomes a direction ``u``; the weights then move by ``-alpha (u
+ kappa w)``.

Pure functions on tensors of any shape, under vmap and forward-mode differentiation too. ``kernels``
has the same arithmetic in place, and a test holds the two equal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lo_framework.optim.fused import one_minus_power
from lo_framework.spec import UserError, nearest

State = dict[str, Tensor]
Number = float | Tensor

TINY = (
    1e-30  # keeps the derivative of sqrt finite at an exactly zero second moment; far below any eps
)


@dataclass(frozen=True)
class Base:
    """One rule.

    ``direction(g, state, betas, eps, step)`` gives ``u`` and the new state; ``step`` counts from 1.
    ``betas`` are rho (momentum), lambda (second moment), for lion (c, rho). ``low`` and ``high``
    bound alpha by default.
    """

    name: str
    betas: tuple[float, ...]
    state: tuple[str, ...]
    eps: float
    low: float
    high: float
    direction: Callable[[Tensor, State, Sequence[float], float, int | Tensor], tuple[Tensor, State]]


def _sgd(
    g: Tensor, state: State, betas: Sequence[float], eps: float, step: int | Tensor
) -> tuple[Tensor, State]:
    return g, {}


def _sgdm(
    g: Tensor, state: State, betas: Sequence[float], eps: float, step: int | Tensor
) -> tuple[Tensor, State]:
    m = state["m"] + (1.0 - betas[0]) * (g - state["m"])
    return m, {"m": m}


def _rmsprop(
    g: Tensor, state: State, betas: Sequence[float], eps: float, step: int | Tensor
) -> tuple[Tensor, State]:
    v = state["v"] + (1.0 - betas[0]) * (g * g - state["v"])
    return g / (v / one_minus_power(betas[0], step) + eps).sqrt(), {"v": v}


def _adamw(
    g: Tensor, state: State, betas: Sequence[float], eps: float, step: int | Tensor
) -> tuple[Tensor, State]:
    m = state["m"] + (1.0 - betas[0]) * (g - state["m"])
    v = state["v"] + (1.0 - betas[1]) * (g * g - state["v"])
    rms = (v / one_minus_power(betas[1], step) + TINY).sqrt()
    return m / one_minus_power(betas[0], step) / (rms + eps), {"m": m, "v": v}


def _lion(
    g: Tensor, state: State, betas: Sequence[float], eps: float, step: int | Tensor
) -> tuple[Tensor, State]:
    c, rho = betas
    u = torch.sign(c * state["m"] + (1.0 - c) * g)
    return u, {"m": state["m"] + (1.0 - rho) * (g - state["m"])}


# The bounds are far from anything useful on both sides: they stop what has gone wrong and nothing
# else.
BASES: dict[str, Base] = {
    base.name: base
    for base in (
        Base("sgd", (), (), 0.0, 1e-10, 10.0, _sgd),
        Base("sgdm", (0.9,), ("m",), 0.0, 1e-10, 10.0, _sgdm),
        Base("rmsprop", (0.999,), ("v",), 1e-10, 1e-10, 0.1, _rmsprop),
        Base("adamw", (0.9, 0.999), ("m", "v"), 1e-8, 1e-10, 0.1, _adamw),
        Base("lion", (0.9, 0.99), ("m",), 0.0, 1e-10, 0.03, _lion),
    )
}


def find_base(name: str) -> Base:
    if name not in BASES:
        raise UserError(
            f'unknown base "{name}"{nearest(str(name), BASES)}; known: {", ".join(BASES)}'
        )
    return BASES[name]


def advance(
    base: Base,
    w: Tensor,
    g: Tensor,
    state: State,
    alpha: Number,
    kappa: float,
    betas: Sequence[float],
    eps: float,
    step: int | Tensor,
) -> tuple[Tensor, State]:
    """One step of the weights, as a function that can be differentiated in all its tensors."""
    u, new = base.direction(g, state, betas, eps, step)
    return w - alpha * (u + kappa * w), new


def hessian_free(
    w: Tensor, u: Tensor, h: Tensor, alpha: Number, kappa: float, gamma: float
) -> tuple[Tensor, Tensor]:
    """One step of the weights and of the trace ``h`` (the derivative of ``w`` by a shift of all
    past log step sizes), with the gradients taken as given.
    """
    dw = -alpha * (u + kappa * w)
    return w + dw, gamma * (1.0 - kappa * alpha) * h + dw


def checked_betas(
    given: Sequence[float] | None, usual: tuple[float, ...], owner: str, argument: str
) -> tuple[float, ...]:
    """``given`` or the usual ones.

    Raises:
        UserError: not as many as the rule has, or not in [0, 1).
    """
    if given is None:
        return usual
    betas = tuple(float(b) for b in (given if isinstance(given, Sequence) else (given,)))
    if len(betas) != len(usual):
        raise UserError(f"{owner} has {len(usual)} {argument}, got {len(betas)}")
    if not all(0.0 <= b < 1.0 for b in betas):
        raise UserError(f"{argument} must be in [0, 1), got {betas}")
    return betas
