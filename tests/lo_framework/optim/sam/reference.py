"""Steps of explicit regularizers, written down slowly from the papers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tests.lo_framework.optim.sam.tools import LossFn


class Slow:
    """One flat vector, one formula a line, the weights really moved: nothing shared with the code
    under test.
    """

    def __init__(self, model: nn.Module, base: torch.optim.Optimizer) -> None:
        self.params, self.base = list(model.parameters()), base
        self.memory: dict[str, Tensor] = {}
        self.steps = 0

    def grad_at(self, loss: LossFn, offset: Tensor | float) -> Tensor:
        start = [p.detach().clone() for p in self.params]
        if isinstance(offset, Tensor):
            for p, d in zip(self.params, offset.split([p.numel() for p in self.params])):
                p.data += d.view_as(p)
        grads = torch.autograd.grad(loss(), self.params)
        for p, s in zip(self.params, start):
            p.data = s
        return torch.cat([g.reshape(-1) for g in grads])

    def step(self, rule: Callable[[Slow, LossFn, Tensor], Tensor], loss: LossFn) -> None:
        direction = rule(self, loss, self.grad_at(loss, 0.0))
        for p, d in zip(self.params, direction.split([p.numel() for p in self.params])):
            p.grad = d.view_as(p).clone()
        self.base.step()
        self.steps += 1


def sam(slow: Slow, loss: LossFn, g: Tensor, rho: float) -> Tensor:
    return slow.grad_at(loss, rho * g / g.norm())


def asam(slow: Slow, loss: LossFn, g: Tensor, rho: float, eta: float) -> Tensor:
    t = torch.cat([p.detach().abs().reshape(-1) for p in slow.params]) + eta
    return slow.grad_at(loss, rho * t**2 * g / (t * g).norm())


def gsam(slow: Slow, loss: LossFn, g: Tensor, rho: float, alpha: float) -> Tensor:
    g_p = slow.grad_at(loss, rho * g / g.norm())
    parallel = (g @ g_p) / g_p.norm() ** 2 * g_p
    return g_p - alpha * (g - parallel)


def gam(
    slow: Slow,
    loss: LossFn,
    g0: Tensor,
    rho: float,
    rho_prime: float,
    a: float,
    b: float,
    gamma: float,
) -> Tensor:
    g1 = slow.grad_at(loss, rho_prime * g0 / g0.norm())
    h0 = g1 - g0
    away = rho * h0 / h0.norm()
    g2 = slow.grad_at(loss, away)
    g3 = slow.grad_at(loss, away + rho_prime * g2 / g2.norm())
    plus, minus = a * g1 + (1 - a) * g3, b * g0 + (1 - b) * g2
    return plus - gamma * (minus - (minus @ plus) / plus.norm() ** 2 * plus)


def looksam(slow: Slow, loss: LossFn, g: Tensor, rho: float, k: int, alpha: float) -> Tensor:
    if slow.steps % k == 0:
        u = g / g.norm()
        g_s = slow.grad_at(loss, rho * u)
        slow.memory["g_v"] = g_s - (g_s @ u) * u
        return g_s
    g_v = slow.memory["g_v"]
    return g + alpha * g.norm() / g_v.norm() * g_v


def s2sam(slow: Slow, loss: LossFn, g: Tensor, rho: float) -> Tensor:
    before = slow.memory.get("G")
    slow.memory["G"] = slow.grad_at(loss, 0.0 if before is None else rho * before / before.norm())
    return slow.memory["G"]


def fsam(slow: Slow, loss: LossFn, g: Tensor, rho: float, sigma: float, lam: float) -> Tensor:
    if slow.steps == 0:
        slow.memory["m"], d = g, g
    else:
        slow.memory["m"] = lam * slow.memory["m"] + (1 - lam) * g
        d = g - sigma * slow.memory["m"]
    return slow.grad_at(loss, rho * d / d.norm())
