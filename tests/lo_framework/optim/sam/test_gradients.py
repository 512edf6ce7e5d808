"""Gradients that explicit regularizers are given: micro-batches, scalers, clipping, and those from
outside."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from lo_framework.optim import S2SAM, SAM, LookSAM
from lo_framework.spec import UserError
from tests.lo_framework.optim.sam import tools


def test_gradients_it_cannot_use_are_refused() -> None:
    embedding = nn.Embedding(5, 3, sparse=True)
    optimizer = SAM(torch.optim.SGD(embedding.parameters(), lr=0.1))
    with pytest.raises(UserError, match="sparse gradients"):
        optimizer.step(tools.closure_of(optimizer, lambda: embedding(torch.tensor([1])).sum()))
    z = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    optimizer = SAM(torch.optim.SGD([z], lr=0.1))
    with pytest.raises(UserError, match="complex"):
        optimizer.step(tools.closure_of(optimizer, lambda: z.abs().sum()))


@pytest.mark.parametrize("face", tools.FACES)
def test_accumulated_micro_batches_are_one_batch(face: tools.Face) -> None:
    whole, parts = tools.network(), tools.network()
    one, two = (face(torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9)) for m in (whole, parts))
    for t in range(6):
        tools.train(one, whole, [t])
        x, y = tools.batch(t)

        def closure(x: Tensor = x, y: Tensor = y) -> float:
            two.zero_grad()
            total = 0.0
            for xs, ys in zip(x.split(4), y.split(4)):
                loss = nn.functional.cross_entropy(parts(xs), ys) / 3
                loss.backward()
                total += float(loss.detach())
            return total

        two.step(closure)
    torch.testing.assert_close(tools.weights(whole), tools.weights(parts), rtol=0, atol=1e-12)


@pytest.mark.parametrize("face", tools.FACES)
def test_grad_scaler_changes_nothing_but_steps_that_overflow(face: tools.Face) -> None:
    model, plain = tools.network(torch.float32), tools.network(torch.float32)
    optimizer, reference = (
        face(torch.optim.AdamW(m.parameters(), lr=0.02)) for m in (model, plain)
    )
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=100)

    def scaled(t: int, infinite_at: int = 0) -> list[int]:
        calls = list[int]()

        def closure() -> Tensor:
            calls.append(1)
            optimizer.zero_grad()
            loss = tools.loss_fn(model, t)()
            scaler.scale(loss * (torch.inf if len(calls) == infinite_at else 1.0)).backward()
            return loss

        optimizer.step(closure, scaler=scaler)
        scaler.update()
        return calls

    for t in range(3):
        scaled(t)
    before, state = tools.weights(model), copy.deepcopy(optimizer.state_dict())
    assert scaler.get_scale() == 1024
    assert len(scaled(7, infinite_at=1)) == 1 and scaler.get_scale() == 512
    if face not in (LookSAM, S2SAM):  # whose step number 3 makes one pass
        scaled(7, infinite_at=2)
        assert scaler.get_scale() == 256
    assert torch.equal(tools.weights(model), before)
    after = optimizer.state_dict()
    assert str(after) == str(state)
    for t in range(3, 6):
        scaled(t)
    tools.train(reference, plain, range(6))
    torch.testing.assert_close(tools.weights(model), tools.weights(plain), rtol=1e-5, atol=1e-6)


def test_a_disabled_scaler_is_none() -> None:
    model, plain = tools.network(), tools.network()
    one, two = (SAM(torch.optim.SGD(m.parameters(), lr=0.1)) for m in (model, plain))
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    one.step(tools.closure_of(one, tools.loss_fn(model, 0)), scaler=scaler)
    scaler.update()
    tools.train(two, plain, [0])
    assert torch.equal(tools.weights(model), tools.weights(plain))
    with pytest.raises(FloatingPointError):
        one.step(
            tools.closure_of(one, lambda: tools.loss_fn(model, 0)() * torch.nan), scaler=scaler
        )


def test_gradients_can_be_clipped_before_the_base_steps() -> None:
    model = tools.network()
    base = torch.optim.SGD(model.parameters(), lr=1.0)

    def clip(*_: object) -> None:
        nn.utils.clip_grad_norm_(model.parameters(), 1e-3)

    base.register_step_pre_hook(clip)
    before = tools.weights(model)
    tools.train(SAM(base), model, [0])
    assert float((tools.weights(model) - before).norm()) == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("face", tools.FACES)
@pytest.mark.parametrize("zeroes", ["nothing", "in place", "afterwards"])
def test_gradients_from_outside_are_refused_not_dropped(face: tools.Face, zeroes: str) -> None:
    """A closure gives no gradient of earlier micro-batches at another point, so what it adds to
    gradients that were there is an error; zeroing them is none, whichever way and whenever.
    """
    model, alone = tools.network(), tools.network()
    optimizer, plain = (face(torch.optim.SGD(m.parameters(), lr=0.1)) for m in (model, alone))
    tools.train(plain, alone, [1])
    loss = tools.loss_fn(model, 1)
    tools.loss_fn(model, 0)().backward()
    accumulated = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    start = tools.weights(model)

    def closure() -> Tensor:
        if zeroes == "in place":
            optimizer.zero_grad(set_to_none=False)
        elif zeroes == "afterwards":  # of another gradient, which is not accumulated
            torch.autograd.grad(loss(), list(model.parameters()))
            optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    if zeroes == "nothing":
        with pytest.raises(UserError, match="must zero the gradients and run all micro-batches"):
            optimizer.step(closure)
        assert torch.equal(tools.weights(model), start)
        # Nothing is lost: the sum is there.
        latest = torch.autograd.grad(loss(), list(model.parameters()))
        for p, first, last in zip(model.parameters(), accumulated, latest):
            torch.testing.assert_close(p.grad, first + last)
        optimizer.zero_grad()  # outside, and a closure that does not zero
    optimizer.step(closure)
    assert torch.equal(tools.weights(model), tools.weights(alone))


def test_a_scaler_that_steps_itself_is_refused() -> None:
    """By ``scaler.step``, passes would be scaled and the update longer by the scale."""
    model, alone = tools.network(torch.float32), tools.network(torch.float32)
    optimizer, plain = (SAM(torch.optim.SGD(m.parameters(), lr=0.1)) for m in (model, alone))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = tools.loss_fn(model, 0)()
        scaler.scale(loss).backward()
        return loss

    start = tools.weights(model)
    scaler.scale(tools.loss_fn(model, 0)()).backward()
    words = r"call step\(closure, scaler=scaler\) instead of scaler\.step"
    for arguments in ((closure,), ()):
        with pytest.raises(UserError, match=words):
            scaler.step(optimizer, *arguments)
    with pytest.raises(UserError, match=words):
        optimizer.step()
    assert torch.equal(tools.weights(model), start)
    optimizer.step(closure, scaler=scaler)  # what was refused leaves nothing behind
    scaler.update()
    tools.train(plain, alone, [0])
    torch.testing.assert_close(tools.weights(model), tools.weights(alone))
