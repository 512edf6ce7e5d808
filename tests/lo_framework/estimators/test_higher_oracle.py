"""Meta-gradients of our engine against ``higher``'s: another way to patch models, another way to
hold the graph.

Six second-order steps of SGD, Adam and AdamW on a small MLP in float64, scored by training and
held-out losses. The AdamW that ``higher`` runs here is written once more, in torch's notation with
powers of beta.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lo_framework.episode import Draw
from lo_framework.estimators import make_estimator
from lo_framework.estimators.higher import import_higher, register_adamw
from lo_framework.estimators.state import UnrollState
from lo_framework.inner.step import Family
from lo_framework.learned import LearnedOptimizer
from lo_framework.objectives import make_objective
from tests.lo_framework.small_tasks import (
    PlainSGD,
    PlainSGDConfig,
    TinyNet,
    copied,
    doubled,
    in_step,
    once,
)

pytest.importorskip("higher", reason="the oracle is the package higher", exc_type=ImportError)

STEPS, TASKS, TRAIN_SHARE = 6, 2, 0.25
NAMES = ("0.weight", "0.bias", "idle", "2.weight", "2.bias")


class Net(nn.Sequential):
    """TinyNet as a module; its ``idle`` parameter is reached with factor zero, so that it has a
    gradient (of zero).
    """

    def __init__(self) -> None:
        super().__init__(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        self.idle = nn.Parameter(torch.zeros(2, 2))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0 * self.idle.sum()


class OracleAdamW(torch.optim.AdamW):
    """A name for the textbook rule below in the registry of ``higher``."""


@functools.cache
def register_textbook() -> None:
    higher = import_higher()
    base: Any = higher.optim.DifferentiableOptimizer

    class Textbook(base):
        def _update(self, grouped_grads: Any, **kwargs: Any) -> None:
            for number, (group, grads) in enumerate(zip(self.param_groups, grouped_grads)):
                beta1, beta2 = group["betas"]
                for i, (p, g) in enumerate(zip(group["params"], grads)):
                    m, v, t = self.state[number].get(i) or (
                        torch.zeros_like(p),
                        torch.zeros_like(p),
                        0,
                    )
                    t = t + 1
                    m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
                    self.state[number][i] = (m, v, t)
                    root = (v / (1 - beta2**t) + 1e-30).sqrt()
                    p = p - group["lr"] * group["weight_decay"] * p
                    group["params"][i] = p - group["lr"] * (m / (1 - beta1**t)) / (
                        root + group["eps"]
                    )

    higher.register_optim(OracleAdamW, Textbook)


def ours(
    learned: LearnedOptimizer,
) -> tuple[dict[str, Tensor], UnrollState, UnrollState, list[Draw]]:
    """Our meta-gradient of one truncation, the states before and after it, and the data it saw."""
    family = Family(TinyNet(), learned)
    objective = make_objective(f"valid:train={TRAIN_SHARE}")
    estimator = make_estimator("tbptt", family, objective, once(STEPS), TASKS)
    begin = in_step(estimator.init_state(learned.theta(), torch.Generator().manual_seed(7)))
    again = copied(begin)
    draws = [estimator.unroller.draw(again, i)[0] for i in range(STEPS)]
    found, end = estimator.estimate(learned.theta(), copied(begin))
    return found.grad, begin, end, draws


def theirs(
    optimizer: type,
    settings: dict[str, Any],
    override: dict[str, list[Any]],
    begin: UnrollState,
    draws: list[Draw],
) -> tuple[Tensor, list[Tensor]]:
    """``higher``'s mean score over tasks and steps, a function of the tensors in ``override``;
    final parameters.
    """
    higher, task = import_higher(), TinyNet()
    total, finals = torch.zeros((), dtype=torch.float64), []
    for k in range(TASKS):
        model = Net().double()
        layout = Family(task, PlainSGD(PlainSGDConfig())).layout
        model.load_state_dict(layout.unflatten(begin.carry.params[k]))
        base = optimizer(model.parameters(), **settings)
        with higher.innerloop_ctx(model, base, override=override) as (patched, differentiable):
            for draw in draws:
                x, y = (part[k] for part in draw.train)
                train = F.cross_entropy(patched(x), y)
                differentiable.step(train)
                x, y = (part[k] for part in draw.held)
                held = F.cross_entropy(patched(x), y)
                for share, loss in ((TRAIN_SHARE, train), (1 - TRAIN_SHARE, held)):
                    total = total + share * task.normalize(loss) / (STEPS * TASKS)
            named = dict(zip((n for n, _ in model.named_parameters()), patched.fast_params))
            finals.append(layout.flatten({n: named[n].detach() for n in NAMES}))
    return total, finals


def raw_hyper(learned: LearnedOptimizer) -> Tensor:
    """hyper-adamw's five values in log and logit space, the same for all tensors: a leaf."""
    parts: Any = learned
    return (parts.start + parts.config.gain * parts.default).detach().requires_grad_()


def test_sgd() -> None:
    grad, begin, end, draws = ours(PlainSGD(PlainSGDConfig(lr=0.8)))
    log_lr = torch.tensor(0.8, dtype=torch.float64).log().requires_grad_()
    total, finals = theirs(torch.optim.SGD, {"lr": 0.8}, {"lr": [log_lr.exp()]}, begin, draws)
    (expected,) = torch.autograd.grad(total, log_lr)
    assert expected.abs() > 1e-4
    torch.testing.assert_close(grad["log_lr"], expected, rtol=1e-11, atol=0)
    torch.testing.assert_close(end.carry.params, torch.stack(finals), rtol=1e-13, atol=1e-14)


def test_adam_with_the_oracles_own_rule() -> None:
    """Its Adam puts eps elsewhere, so eps is next to nothing here, and it would get the gradient of
    beta2 wrong.
    """
    learned = doubled("hyper-adamw:lr=0.05,weight_decay=0,eps=1e-30", spread=0.0)
    grad, begin, end, draws = ours(learned)
    raw = raw_hyper(learned)
    beta1, beta2 = torch.sigmoid(raw[1:3])
    # Not quite zero: the idle parameter, whose gradient is exactly zero, would be 0 / 0.
    override = {"lr": [raw[0].exp()], "betas": [(beta1, beta2.detach())], "eps": [1e-100]}
    total, finals = theirs(torch.optim.Adam, {"lr": 0.05}, override, begin, draws)
    expected = learned.config.gain * torch.autograd.grad(total, raw)[0]
    assert expected[:2].abs().min() > 1e-4
    torch.testing.assert_close(grad["default"][:2], expected[:2], rtol=1e-9, atol=0)
    torch.testing.assert_close(end.carry.params, torch.stack(finals), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize(
    "settings", ["lr=0.05,weight_decay=0.3,beta2=0.9", "lr=0.05,eps=0.01", "lr=0.001"]
)
@pytest.mark.parametrize("rule", ["textbook", "registered"])
def test_adamw(rule: str, settings: str) -> None:
    """lr, both betas, weight decay and eps at once; the second rule is the one of ``--inner-backend
    higher``.
    """
    register_textbook()
    register_adamw()
    learned = doubled(f"hyper-adamw:{settings}", spread=0.0)
    grad, begin, end, draws = ours(learned)
    raw = raw_hyper(learned)
    beta1, beta2 = torch.sigmoid(raw[1:3])
    override = {
        "lr": [raw[0].exp()],
        "betas": [(beta1, beta2)],
        "weight_decay": [raw[3].exp()],
        "eps": [raw[4].exp()],
    }
    optimizer = OracleAdamW if rule == "textbook" else torch.optim.AdamW
    total, finals = theirs(optimizer, {"lr": 0.05}, override, begin, draws)
    expected = learned.config.gain * torch.autograd.grad(total, raw)[0]
    assert expected[:4].abs().min() > 1e-8
    torch.testing.assert_close(grad["default"], expected, rtol=1e-9, atol=1e-13)
    torch.testing.assert_close(end.carry.params, torch.stack(finals), rtol=1e-12, atol=1e-13)


def test_adamw_follows_torch() -> None:
    """The trajectory itself, against the optimizer that people use."""
    learned = doubled("hyper-adamw:lr=0.05,weight_decay=0.3", spread=0.0)
    _, begin, end, draws = ours(learned)
    raw = raw_hyper(learned).detach()
    layout = Family(TinyNet(), learned).layout
    for k in range(TASKS):
        model = Net().double()
        model.load_state_dict(layout.unflatten(begin.carry.params[k]))
        betas = tuple(torch.sigmoid(raw[1:3]).tolist())
        lr, weight_decay, eps = (float(raw[i].exp()) for i in (0, 3, 4))
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=lr, betas=betas, weight_decay=weight_decay, eps=eps
        )
        for draw in draws:
            optimizer.zero_grad()
            F.cross_entropy(model(draw.train[0][k]), draw.train[1][k]).backward()
            optimizer.step()
        final = layout.flatten({n: p.detach() for n, p in model.named_parameters()})
        torch.testing.assert_close(end.carry.params[k], final, rtol=1e-12, atol=1e-14)


def test_registered_adamw_goes_on_from_a_torch_optimizer() -> None:
    higher = import_higher()
    register_adamw()
    x, y = TinyNet().full("train")
    model = Net().double()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.03, weight_decay=0.2)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    with higher.innerloop_ctx(model, optimizer) as (patched, differentiable):
        for _ in range(3):
            differentiable.step(F.cross_entropy(patched(x), y))
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        for p, q in zip(model.parameters(), patched.fast_params):
            torch.testing.assert_close(p.detach(), q.detach(), rtol=1e-12, atol=1e-15)
