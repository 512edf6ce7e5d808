"""MetaOptimize written down slowly in the paper's notation, and its traces by brute force. Nothing
is shared with the code under test: one flat vector, one formula a line, autograd for every
derivative.

w weights, g gradient, alpha = exp(beta), h trace, z meta-gradient, eta meta step size, kappa weight
decay, rho and lam decays of the moments, c Lion's mixture; x~ = (m, v), y = (beta, mb, vb); barred
quantities end in b.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

D = torch.float64
BASE_BETAS = {
    "sgd": (),
    "sgdm": (0.9,),
    "rmsprop": (0.999,),
    "adamw": (0.9, 0.999),
    "lion": (0.9, 0.99),
}
META_BETAS = {
    "fixed": (),
    "sgd": (),
    "rmsprop": (0.999,),
    "adam": (0.9, 0.999),
    "lion": (0.9, 0.99),
}
BASES, METAS = list(BASE_BETAS), list(META_BETAS)
Loss = Callable[[int, Tensor], Tensor]


def vec(*values: float) -> Tensor:
    return torch.tensor(values, dtype=D)


def losses(n: int, seed: int = 0) -> Loss:
    """A stream of smooth losses whose Hessians are indefinite and change with w and t."""
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(40, 6, n, generator=g, dtype=D)
    b = torch.randn(40, 6, generator=g, dtype=D)
    return lambda t, w: torch.tanh(a[t] @ w - b[t]).square().sum() + 0.3 * w.pow(3).sum()


def base_rule(base: str, g: Tensor, m: Tensor, v: Tensor, t: int) -> tuple[Tensor, Tensor, Tensor]:
    """u, m, v at step t (from 1)."""
    if base == "sgd":
        return g, m, v
    if base == "sgdm":
        (rho,) = BASE_BETAS[base]
        m = rho * m + (1 - rho) * g
        return m, m, v
    if base == "rmsprop":
        (lam,) = BASE_BETAS[base]
        v = lam * v + (1 - lam) * g**2
        return g / torch.sqrt(v / (1 - lam**t) + 1e-10), m, v
    if base == "adamw":
        rho, lam = BASE_BETAS[base]
        m = rho * m + (1 - rho) * g
        v = lam * v + (1 - lam) * g**2
        return (m / (1 - rho**t)) / (torch.sqrt(v / (1 - lam**t)) + 1e-8), m, v
    c, rho = BASE_BETAS[base]
    u = torch.sign(c * m + (1 - c) * g)
    return u, rho * m + (1 - rho) * g, v


def meta_rule(
    meta: str, beta: Any, mb: Any, vb: Any, z: Any, eta: float, t: int
) -> tuple[Any, Any, Any]:
    """beta, mb, vb after the meta step t (from 1)."""
    if meta == "fixed":
        return beta, mb, vb
    if meta == "sgd":
        return beta - eta * z, mb, vb
    if meta == "rmsprop":
        (lam,) = META_BETAS[meta]
        vb = lam * vb + (1 - lam) * z**2
        return beta - eta * z / torch.sqrt(vb / (1 - lam**t) + 1e-30), mb, vb
    if meta == "adam":
        rho, lam = META_BETAS[meta]
        mb = rho * mb + (1 - rho) * z
        vb = lam * vb + (1 - lam) * z**2
        return (
            beta - eta * (mb / (1 - rho**t)) / (torch.sqrt(vb / (1 - lam**t) + 1e-30) + 1e-15),
            mb,
            vb,
        )
    c, rho = META_BETAS[meta]
    beta = beta - eta * torch.sign(c * mb + (1 - c) * z)
    return beta, rho * mb + (1 - rho) * z, vb


class Slow:
    """The Hessian-free algorithm. ``block``: the block of each element of w."""

    def __init__(
        self,
        base: str,
        meta: str,
        w: Tensor,
        block: Tensor,
        alpha0: float,
        eta: float,
        gamma: float,
        kappa: float,
    ) -> None:
        self.base, self.meta, self.block = base, meta, block
        self.eta, self.gamma, self.kappa = eta, gamma, kappa
        num = int(block.max()) + 1
        self.w, self.t = w.clone(), 0
        self.m, self.v, self.h = (torch.zeros_like(w) for _ in range(3))
        self.beta = torch.full((num,), alpha0, dtype=D).log()
        self.mb, self.vb = torch.zeros(num, dtype=D), torch.zeros(num, dtype=D)

    def step(self, g: Tensor) -> None:
        self.t += 1
        z = torch.zeros_like(self.beta).index_add(0, self.block, self.h * g)
        alpha = self.beta.exp()[self.block]
        u, self.m, self.v = base_rule(self.base, g, self.m, self.v, self.t)
        dw = -alpha * (u + self.kappa * self.w)
        self.h = self.gamma * (1 - self.kappa * alpha) * self.h + dw
        self.w = self.w + dw
        self.beta, self.mb, self.vb = meta_rule(
            self.meta, self.beta, self.mb, self.vb, z, self.eta, self.t
        )


def derivative(outputs: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
    """d outputs / d each input, ``[n, c]``."""
    rows = [torch.autograd.grad(x, inputs, retain_graph=True, allow_unused=True) for x in outputs]
    return [
        torch.stack([torch.zeros_like(e) if row[k] is None else row[k] for row in rows])  # type: ignore[misc]
        for k, e in enumerate(inputs)
    ]


def trace_of_given_betas(
    base: str,
    loss: Loss,
    w0: Tensor,
    betas: Sequence[Tensor],
    block: Tensor,
    shifts: Tensor,
    gamma: float,
    kappa: float,
    *,
    detach: bool,
) -> Tensor:
    """sum over s < T of gamma^(T-1-s) d w_T / d beta_s, ``[n, C]``: what "l" is, or, with gradients
    as constants, Hessian-free. ``shifts [m, C]``: which betas a column moves.
    """
    eps = [torch.zeros(shifts.shape[1], dtype=D, requires_grad=True) for _ in betas]
    w = w0.clone().requires_grad_()
    m = v = torch.zeros_like(w0)
    for t, beta in enumerate(betas):
        alpha = (beta + shifts @ eps[t]).exp()[block]
        if detach:
            point = w.detach().requires_grad_()
            (g,) = torch.autograd.grad(loss(t, point), point)
        else:
            (g,) = torch.autograd.grad(loss(t, w), w, create_graph=True)
        u, m, v = base_rule(base, g, m, v, t + 1)
        w = w - alpha * (u + kappa * w)
    num = len(betas)
    return sum(gamma ** (num - 1 - s) * x for s, x in enumerate(derivative(w, eps)))  # type: ignore[return-value]


def trace_with_feedback(
    base: str,
    meta: str,
    loss: Loss,
    w0: Tensor,
    beta0: Tensor,
    traces: Sequence[Tensor],
    block: Tensor,
    shifts: Tensor,
    eta: float,
    gamma: float,
    kappa: float,
    *,
    injections: Sequence[float] | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """X_T ``[n, C]``, Y_T ``[m, C]`` and Q_T of eq. 14 by autograd through weights, base and meta
    state.

    ``traces``: H_t ``[n, C]`` for t < T, constants inside z (2x2). With ``injections`` (cy_t), h is
    a variable too (3x3, sgd by sgd), and only cy is constant. A shift injected at s stays in beta;
    the first one counts as the warm start and as the injection at 0 together.
    """
    num, columns = len(traces), shifts.shape[1]
    eps = [torch.zeros(columns, dtype=D, requires_grad=True) for _ in range(num)]
    w, beta = w0.clone().requires_grad_(), beta0
    m = v = torch.zeros_like(w0)
    mb = vb = torch.zeros_like(beta0)
    h = torch.zeros_like(w0)
    for t in range(num):
        beta = beta + shifts @ eps[t]
        alpha = beta.exp()[block]
        (g,) = torch.autograd.grad(loss(t, w), w, create_graph=True)
        if injections is not None:
            z = (h @ g)[None]
            ch = (
                torch.autograd.functional.hessian(lambda x, t=t: loss(t, x), w, create_graph=True)
                @ h
            )
            h = gamma * (h - alpha * (ch + kappa * h)) - injections[t] * alpha * (g + kappa * w)
        elif columns == 1:
            products = traces[t][:, 0] * g
            z = torch.stack([products[block == b].sum() for b in range(len(beta0))])
        else:
            z = traces[t].T @ g
        u, m, v = base_rule(base, g, m, v, t + 1)
        w = w - alpha * (u + kappa * w)
        beta, mb, vb = meta_rule(meta, beta, mb, vb, z, eta, t + 1)
    weights = [gamma ** (num - 1)] + [(1 - gamma) * gamma ** (num - 1 - s) for s in range(1, num)]

    def weighted(x: Tensor) -> Tensor:
        return sum(k * d for k, d in zip(weights, derivative(x, eps)))  # type: ignore[return-value]

    return weighted(w), weighted(beta), None if injections is None else weighted(h)
