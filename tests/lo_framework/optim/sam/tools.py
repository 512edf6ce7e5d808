"""What the tests of explicit regularizers share: a small problem, and steps written down slowly
from the papers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lo_framework.optim import Regularized
from tests.lo_framework.optim.tools import generator

LossFn = Callable[[], Tensor]
Face = Callable[..., Regularized]


def network(dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)
    g = generator(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=g, dtype=torch.float64))
    return model


def batch(t: int, dtype: torch.dtype = torch.float64, rows: int = 12) -> tuple[Tensor, Tensor]:
    g = generator(100 + t)
    return torch.randn(rows, 4, generator=g, dtype=torch.float64).to(dtype), torch.randint(
        3, (rows,), generator=g
    )


def loss_fn(model: nn.Module, t: int) -> LossFn:
    dtype = next(model.parameters()).dtype
    x, y = batch(t, dtype)
    return lambda: nn.functional.cross_entropy(model(x), y)


def closure_of(
    optimizer: torch.optim.Optimizer, loss: LossFn, calls: list[int] | None = None
) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        if calls is not None:
            calls.append(1)
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    return closure


def train(
    optimizer: Any, model: nn.Module, steps: Sequence[int], calls: list[int] | None = None
) -> list[float]:
    return [
        float(optimizer.step(closure_of(optimizer, loss_fn(model, t), calls)).detach())
        for t in steps
    ]


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1).clone() for p in model.parameters()])


BASES: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgdm": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9, weight_decay=1e-2),
    "adamw": lambda params: torch.optim.AdamW(params, lr=0.02),
}


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


def fsam(slow: Slow, loss: LossFn, g: Tensor, rho: float, sigma: float, lam: float) -> Tensor:
    if slow.steps == 0:
        slow.memory["m"], d = g, g
    else:
        slow.memory["m"] = lam * slow.memory["m"] + (1 - lam) * g
        d = g - sigma * slow.memory["m"]
    return slow.grad_at(loss, rho * d / d.norm())
