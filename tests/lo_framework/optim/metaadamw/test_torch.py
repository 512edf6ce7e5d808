"""MetaAdamW keeps what torch promises of an optimizer: scalers, schedulers, closures, wrappers,
accumulation.
"""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    CyclicLR,
    LambdaLR,
    LinearLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
)

from lo_framework.errors import UserError
from lo_framework.optim import SAM
from tests.lo_framework.optim.metaadamw import tools
from tests.lo_framework.optim.metaadamw.settings import build
from tests.lo_framework.optim.metaadamw.tools import D, snapshot, theta, weights


def test_grad_scaler() -> None:
    """It changes nothing but steps that overflow, which leave weights, state and network as they
    were.
    """
    model, plain = tools.network(torch.float32), tools.network(torch.float32)
    optimizer, reference = (tools.make(m.named_parameters()) for m in (model, plain))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=100)

    def scaled(t: int, factor: float = 1.0) -> None:
        optimizer.zero_grad()
        loss = tools.loss_of(model)(tools.batch(t, torch.float32))
        scaler.scale(loss * factor).backward()
        scaler.step(optimizer)
        scaler.update()

    for t in range(3):
        scaled(t)
    before, state = weights(model), snapshot(optimizer)
    scaled(7, factor=torch.inf)
    assert scaler.get_scale() == 512 and torch.equal(weights(model), before)
    assert snapshot(optimizer) == state and optimizer.updates == 3
    tools.meta(optimizer, model)
    for t in range(3, 6):
        scaled(t)
    tools.run(reference, plain, range(3))
    tools.meta(reference, plain)
    tools.run(reference, plain, range(3, 6))
    torch.testing.assert_close(weights(model), weights(plain), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(theta(optimizer), theta(reference), rtol=1e-4, atol=1e-5)


SCHEDULERS: dict[str, Any] = {
    "lambda": lambda o: LambdaLR(o, lambda t: 0.7**t),
    "cosine": lambda o: CosineAnnealingLR(o, 6),
    "one cycle": lambda o: OneCycleLR(o, 0.05, total_steps=12),  # writes betas, too
    "cyclic": lambda o: CyclicLR(o, 0.001, 0.05, step_size_up=3),
    "sequence": lambda o: SequentialLR(
        o, [LinearLR(o, total_iters=3), CosineAnnealingLR(o, 6)], [3]
    ),
    "to zero": lambda o: LambdaLR(o, lambda t: max(0.0, 1 - t / 3)),
}


@pytest.mark.parametrize("lr", [0.02, torch.tensor(0.02, dtype=D)], ids=["number", "tensor"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_act_as_on_adamw(name: str, lr: float | Tensor) -> None:
    """Without warnings; also on betas, and with a meta step in between, which looks at the rate in
    force. AdamW has the same kind of rate: SequentialLR of torch 2.9 loses one that is a tensor.
    """
    model, plain = tools.network(), tools.network()
    one_lr, two_lr = (lr.clone() if isinstance(lr, Tensor) else lr for _ in "ab")
    still: dict[str, Any] = {"alpha_range": 0.0, "beta_range": 0.0, "network": tools.SMALL}
    one = build(model.named_parameters(), one_lr, **still)
    two = torch.optim.AdamW(plain.parameters(), two_lr)
    seen = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        schedulers = [SCHEDULERS[name](o) for o in (one, two)]
        for t in range(8):
            for optimizer, net in ((one, model), (two, plain)):
                tools.step(optimizer, net, t)
            if t == 4:
                tools.meta(one, model)
            for scheduler in schedulers:
                scheduler.step()
            seen.append((float(one.param_groups[0]["lr"]), one.param_groups[0]["betas"]))
    torch.testing.assert_close(weights(model), weights(plain), rtol=0, atol=1e-12)
    assert len(set(seen)) > 2 and (name != "one cycle" or len({betas for _, betas in seen}) > 2)


def test_reduce_on_plateau_and_a_scheduler_that_resumes() -> None:
    model = tools.network()
    optimizer = tools.make(model.named_parameters())
    scheduler = ReduceLROnPlateau(optimizer, patience=1, factor=0.1)
    for t in range(6):
        tools.step(optimizer, model, t)
        scheduler.step(1.0)
    assert optimizer.param_groups[0]["lr"] < 0.02
    again = tools.make(tools.network().named_parameters())
    again.load_state_dict(optimizer.state_dict())
    assert again.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]


def test_a_closure_gives_gradients_and_its_value() -> None:
    model, plain = tools.network(), tools.network()
    one, two = (tools.make(m.named_parameters()) for m in (model, plain))
    pair, losses = tools.batch(0), []

    def closure() -> Tensor:
        one.zero_grad()
        loss = tools.loss_of(model)(pair)
        loss.backward()
        return loss

    for _ in range(5):
        with torch.no_grad():
            losses.append(float(one.step(closure)))
        tools.step(two, plain, 0)
    assert losses == sorted(set(losses), reverse=True) and torch.equal(
        weights(model), weights(plain)
    )


def test_wrapped_by_explicit_sam() -> None:
    model = tools.network()
    base = tools.make(model.named_parameters())
    optimizer = SAM(base, rho=0.1)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = tools.loss_of(model)(tools.batch(0))
        loss.backward()
        return loss

    losses = [float(optimizer.step(closure).detach()) for _ in range(4)]
    tools.meta(base, model)
    assert base.updates == 4 and losses[-1] < losses[0]


def test_step_hooks_run() -> None:
    model = tools.network()
    optimizer = tools.make(model.named_parameters())
    seen: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    tools.run(optimizer, model, range(2))
    assert seen == ["before", "after"] * 2


def test_gradients_and_parameters_it_cannot_use_are_refused() -> None:
    """Before anything changes: also where another parameter is fine."""
    embedding = nn.Embedding(5, 3, sparse=True)
    other = nn.Linear(3, 2)
    optimizer = build([*other.parameters(), *embedding.parameters()])
    other(embedding(torch.tensor([1, 2]))).sum().backward()
    before, state = weights(other), snapshot(optimizer)
    with pytest.raises(UserError, match="cannot use sparse gradients"):
        optimizer.step()
    assert (
        torch.equal(weights(other), before)
        and snapshot(optimizer) == state
        and optimizer.updates == 0
    )
    with pytest.raises(UserError, match="complex parameters"):
        build([nn.Parameter(torch.zeros(2, dtype=torch.complex64))])


@pytest.mark.parametrize("order", ["exact", "difference"])
def test_accumulated_micro_batches_are_one_batch(order: str) -> None:
    """A meta step between them leaves the gradients that are there (D23)."""
    whole, parts = tools.network(), tools.network()
    one, two = (tools.make(m.named_parameters(), order=order) for m in (whole, parts))
    for t in range(6):
        tools.step(one, whole, t)
        two.zero_grad()
        x, y = tools.batch(t)
        for k, (xs, ys) in enumerate(zip(x.split(4), y.split(4))):
            (tools.loss_of(parts)((xs, ys)) / 3).backward()
            if k == 1 and t == 3:
                tools.meta(two, parts)
        two.step()
        if t == 2:
            tools.meta(one, whole)
    # At t = 3, the second met its batches with the same weights: those of after step 2.
    torch.testing.assert_close(weights(whole), weights(parts), rtol=0, atol=1e-11)
