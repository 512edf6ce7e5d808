"""Explicit regularizers around a learned optimizer, and its guard."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import StepLR

from lo_framework.optim import (
    SAM,
    GuardConfig,
    Learned,
)
from tests.lo_framework.optim.sam import tools
from tests.lo_framework.optim.tools import moved


def test_around_a_learned_optimizer() -> None:
    """Its updates are those for the regularized gradients, and rules that read the loss get the
    first pass's.
    """
    model, other = tools.network(torch.float32), tools.network(torch.float32)
    optimizer = SAM(Learned(model.parameters(), moved("attention-mlp"), num_steps=10), rho=0.1)
    bare = Learned(other.parameters(), moved("attention-mlp"), num_steps=10)
    scheduler = StepLR(optimizer, 3, 2.0)
    seen: list[float] = []
    inner = optimizer.base._host.learned.condition  # type: ignore[attr-defined]
    optimizer.base._host.learned.condition = lambda *a: (seen.append(float(a[3])), inner(*a))[1]  # type: ignore[attr-defined, func-returns-value]
    losses = []
    for t in range(4):
        losses += tools.train(optimizer, model, [t])
        for p, q in zip(model.parameters(), other.parameters()):
            q.grad = p.grad.clone()  # type: ignore[union-attr]
        bare.step(loss=losses[-1])
        bare.param_groups[0]["lr"] = 2.0 if t == 2 else 1.0
        scheduler.step()
    assert seen == pytest.approx(losses)
    torch.testing.assert_close(tools.weights(model), tools.weights(other))

    again = SAM(Learned(model.parameters(), moved("attention-mlp"), num_steps=10), rho=0.1)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    kept = tools.weights(model)
    tools.train(optimizer, model, range(4, 7))
    expected = tools.weights(model)
    with torch.no_grad():
        nn.utils.vector_to_parameters(kept, model.parameters())
    tools.train(again, model, range(4, 7))
    assert torch.equal(tools.weights(model), expected)


def test_a_guarded_base_decides_about_a_broken_loss() -> None:
    model = tools.network(torch.float32)
    base = Learned(
        model.parameters(),
        moved("attention"),
        num_steps=10,
        guard=GuardConfig(every=1, warmup=1, steps=2),
    )
    optimizer = SAM(base)
    tools.train(optimizer, model, range(3))
    before = tools.weights(model)
    with pytest.warns(UserWarning, match="is left out"):
        optimizer.step(tools.closure_of(optimizer, lambda: tools.loss_fn(model, 3)() * torch.nan))
    assert base.guard_activations == 0
    assert torch.equal(tools.weights(model), before)
    tools.train(optimizer, model, range(4, 7))


@pytest.mark.parametrize("guard", [False, True])
def test_overflows_of_a_scaler_are_no_concern_of_a_guard(guard: bool) -> None:
    """The first passes overflow, as in float16: skipped steps, and the weights are those without
    a guard. Without a scaler a broken gradient still reaches the guard.
    """
    results = []
    for guarded in (guard, False):
        model = tools.network(torch.float32)
        base = Learned(model.parameters(), moved("attention"), num_steps=100, guard=guarded)
        optimizer, scaler = SAM(base), torch.amp.GradScaler("cpu", init_scale=2.0**17)

        def closure(
            model: nn.Module = model, optimizer: SAM = optimizer, scaler: Any = scaler
        ) -> Tensor:
            optimizer.zero_grad()
            loss = tools.loss_fn(model, 0)()
            overflows = scaler.get_scale() > 2**16
            (scaler.scale(loss) * (torch.inf if overflows else 1.0)).backward()
            return loss

        for _ in range(6):
            optimizer.step(closure, scaler=scaler)
            scaler.update()
        assert base.guard_activations == 0
        results.append(tools.weights(model))
    assert torch.equal(*results)
    assert not torch.equal(results[0], tools.weights(tools.network(torch.float32)))


@pytest.mark.parametrize("scaled", [False, True])
def test_a_broken_gradient_or_loss_reaches_the_guard(scaled: bool) -> None:
    """A gradient where no scaler can have made it overflow, the loss itself always."""
    scaler = torch.amp.GradScaler("cpu") if scaled else None
    model = tools.network(torch.float32)
    guard = GuardConfig(every=1, warmup=1, steps=2)
    base = Learned(model.parameters(), moved("attention"), num_steps=9, guard=guard)
    optimizer = SAM(base)
    tools.train(optimizer, model, range(2))

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = tools.loss_fn(model, 2)() * (torch.nan if scaled else 1.0)
        ((loss if scaler is None else scaler.scale(loss)) * torch.nan).backward()
        return loss

    before = tools.weights(model)
    with pytest.warns(UserWarning, match="is left out"):
        optimizer.step(closure, scaler=scaler)
    assert base.guard_activations == 0 and torch.equal(tools.weights(model), before)
