"""A step in two halves is the closure's to the bit, goes on from a saved half, and is refused in
one line where its halves do not follow one another.
"""

from __future__ import annotations

import copy
import io
import math
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import StepLR

from lo_framework import regularizers as rules
from lo_framework.optim import (
    ASAM,
    FSAM,
    GAM,
    GSAM,
    S2SAM,
    SAM,
    GuardConfig,
    Learned,
    LookSAM,
    Regularized,
)
from lo_framework.spec import UserError
from tests.lo_framework.optim.sam import tools
from tests.lo_framework.optim.tools import moved

MIXTURE = rules.Mixture(
    [rules.REGULARIZERS.build(s) for s in ("asam:rho=0.2", "weight_decay:lam=0.01")]
)
TWO = rules.Mixture([rules.REGULARIZERS.build(s) for s in ("sam", "asam")])
FACES = {
    "sam": SAM,
    "asam": ASAM,
    "gsam": GSAM,
    "fsam": partial(FSAM, average="old"),
    "looksam": partial(LookSAM, k=3),
    "mixture": lambda base, **options: Regularized(base, MIXTURE, **options),
}


def noisy(seed: int = 0) -> nn.Sequential:
    """With running statistics, dropout and a parameter that the optimizer does not have."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.4), nn.Tanh(), nn.Linear(6, 3)
    )
    return model.double()


def halves(
    optimizer: Regularized, model: nn.Module, steps: Sequence[int], begin: bool = False
) -> None:
    for t in steps:
        optimizer.zero_grad()
        loss = tools.loss_fn(model, t)
        if begin:
            optimizer.begin_step()
        value = loss()
        value.backward()
        optimizer.first_step(value)
        loss().backward()
        optimizer.second_step()


def made(face: Any, trained: nn.Module, **options: Any) -> Regularized:
    return face(tools.BASES["adamw"](trained.parameters()), **options)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("face", FACES)
def test_halves_are_the_closure_to_the_bit(face: str, dtype: torch.dtype) -> None:
    one, two = tools.network(dtype), tools.network(dtype)
    by_closure, by_halves = (made(FACES[face], m) for m in (one, two))
    for t in range(7):
        tools.train(by_closure, one, [t])
        halves(by_halves, two, [t])
        assert torch.equal(tools.weights(one), tools.weights(two))
        for p, q in zip(one.parameters(), two.parameters()):
            assert p.grad is not None and q.grad is not None and torch.equal(p.grad, q.grad)
    assert str(by_closure.state_dict()) == str(by_halves.state_dict())
    assert by_halves._rule_state.steps == 7


@pytest.mark.parametrize("face", ["sam", "looksam"])
def test_statistics_noise_and_other_gradients_are_those_of_one_pass(face: str) -> None:
    runs = []
    for by_closure in (True, False):
        model = noisy()
        others = model[4].weight
        mine = [p for p in model.parameters() if p is not others]
        optimizer = FACES[face](torch.optim.SGD(mine, lr=0.1), model=model)  # type: ignore[operator]
        torch.manual_seed(3)
        for t in range(4):
            if by_closure:
                tools.train(optimizer, model, [t])
            else:
                halves(optimizer, model, [t], begin=True)
        state = [*model.state_dict().values(), others.grad, torch.get_rng_state()]
        runs.append([x.clone() for x in state])
    assert all(map(torch.equal, *runs))


def test_a_second_pass_with_noise_of_its_own_is_said_once() -> None:
    model = noisy()
    optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.1), model=model)
    with pytest.warns(UserWarning, match="begin_step") as seen:
        halves(optimizer, model, range(3))
    assert len(seen) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for quiet in (
            SAM(torch.optim.SGD(model.parameters(), lr=0.1), model=model, same_noise=False),
            SAM(torch.optim.SGD(model.eval().parameters(), lr=0.1), model=model),
        ):
            halves(quiet, model, range(2))


def test_looksam_says_when_no_second_pass_is_needed() -> None:
    model, other = tools.network(), tools.network()
    optimizer, reference = (made(FACES["looksam"], m) for m in (model, other))
    needed = []
    for t in range(6):
        optimizer.zero_grad()
        tools.loss_fn(model, t)().backward()
        needed.append(optimizer.first_step())
        if needed[-1]:
            tools.loss_fn(model, t)().backward()
        optimizer.second_step()
    tools.train(reference, other, range(6))
    assert needed == [True, False, False] * 2
    assert torch.equal(tools.weights(model), tools.weights(other))


@pytest.mark.parametrize("face", ["sam", "fsam", "looksam"])
def test_a_training_saved_between_the_halves_goes_on_to_the_same_bits(face: str) -> None:
    def begun() -> tuple[nn.Module, Regularized]:
        model = noisy()
        return model, made(FACES[face], model, model=model)

    model, optimizer = begun()
    halves(optimizer, model, range(3), begin=True)
    optimizer.zero_grad()
    optimizer.begin_step()
    tools.loss_fn(model, 3)().backward()
    optimizer.first_step()
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    noise = torch.get_rng_state()

    def finish(model: nn.Module, optimizer: Regularized) -> list[Tensor]:
        torch.set_rng_state(noise)
        tools.loss_fn(model, 3)().backward()
        optimizer.second_step()
        halves(optimizer, model, range(4, 6), begin=True)
        return [*model.state_dict().values(), torch.get_rng_state()]

    expected = [x.clone() for x in finish(model, optimizer)]
    again, resumed = begun()
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    assert all(map(torch.equal, finish(again, resumed), expected))

    fresh = begun()[1]
    fresh.load_state_dict(optimizer.state_dict())  # of a whole step: no half is left
    with pytest.raises(UserError, match="after first_step"):
        fresh.second_step()
    before = str(fresh.state_dict())
    with pytest.raises(UserError, match="3 buffers and not 0; give the same model="):
        made(FACES[face], noisy()).load_state_dict(saved["optimizer"])
    del saved["optimizer"]["regularizer"]["half"]["params"]["0"]
    saved["optimizer"]["regularizer"]["half"]["params"]["1"] = torch.ones(2)
    with pytest.raises(UserError, match="other parameters: parameter 1"):
        fresh.load_state_dict(saved["optimizer"])
    assert str(fresh.state_dict()) == before


def test_halves_in_another_order_are_refused_and_change_nothing() -> None:
    model, alone = tools.network(), tools.network()
    optimizer, reference = made(SAM, model), made(SAM, alone)
    closure = tools.closure_of(optimizer, tools.loss_fn(model, 0))

    def refused(words: str, method: Any, *arguments: Any) -> None:
        weights, state = tools.weights(model), copy.deepcopy(optimizer.state_dict())
        with pytest.raises(UserError, match=words) as error:
            method(*arguments)
        assert "\n" not in str(error.value)
        assert torch.equal(tools.weights(model), weights)
        assert str(optimizer.state_dict()) == str(state)

    refused("comes after first_step", optimizer.second_step)
    refused("needs gradients: run backward", optimizer.first_step)
    tools.loss_fn(model, 0)().backward()
    optimizer.first_step()
    assert not torch.equal(tools.weights(model), tools.weights(alone))
    refused("needs the gradients of a second pass", optimizer.second_step)
    refused("needs the gradients of a second pass", optimizer.step)
    refused("in the midst of a step", optimizer.begin_step)
    refused(r"step\(closure\) in the midst", optimizer.step, closure)
    tools.loss_fn(model, 0)().backward()
    refused("in the midst of a step", optimizer.first_step)
    for to_none in (False, True):
        optimizer.zero_grad(set_to_none=to_none)
        refused("zero no gradients", optimizer.second_step)
    tools.loss_fn(model, 0)().backward()
    scaler = torch.amp.GradScaler("cpu")
    refused("unscaled loss", partial(optimizer.step, scaler=scaler))
    optimizer.step()  # the same as second_step
    tools.train(reference, alone, [0])
    assert torch.equal(tools.weights(model), tools.weights(alone))
    refused("first_step", optimizer.step)


def test_a_parameter_of_the_second_pass_alone_takes_no_part() -> None:
    """It had no gradient at the weights, so there is nothing to correct, as with a closure."""

    def backward(optimizer: Any, pair: Sequence[Tensor], uses_both: Any) -> Tensor:
        optimizer.zero_grad()
        loss = (pair[0] ** 4).sum() + (pair[1].pow(2).sum() if next(uses_both) else 0.0)
        loss.backward()
        return loss

    results = []
    for by_closure in (True, False):
        torch.manual_seed(0)
        pair = [nn.Parameter(torch.randn(3, dtype=torch.float64)) for _ in range(2)]
        optimizer = SAM(torch.optim.SGD(pair, lr=0.1), rho=0.5)
        run = partial(backward, optimizer, pair, iter((False, True)))
        if by_closure:
            optimizer.step(run)
        else:
            run()
            optimizer.first_step()
            run()
            optimizer.second_step()
        assert pair[1].grad is None
        results.append([p.tolist() for p in pair])
    assert results[0] == results[1]


def first_half(optimizer: Regularized, model: nn.Module, t: int) -> None:
    optimizer.zero_grad()
    if not isinstance(optimizer, S2SAM):
        optimizer.begin_step()
        tools.loss_fn(model, t)().backward()
    optimizer.first_step()


@pytest.mark.parametrize("face", ["sam", "looksam", "s2sam"])
def test_a_cancelled_step_has_not_been(face: str) -> None:
    """Also after its second pass, and where that gave nothing finite."""
    faces = {**FACES, "s2sam": S2SAM}
    runs = []
    for cancels in (False, True):
        model = noisy()
        optimizer = faces[face](torch.optim.AdamW(model.parameters(), lr=0.1), model=model)
        torch.manual_seed(3)
        for t in range(4):
            if cancels:
                before, noise = copy.deepcopy(model.state_dict()), torch.get_rng_state()
                first_half(optimizer, model, t)
                (tools.loss_fn(model, t)() * math.nan).backward()
                optimizer.cancel_step()
                for name, p in model.named_parameters():
                    assert p.grad is None and torch.equal(p, before[name])
                model.load_state_dict(before)  # the pass has moved running statistics
                torch.set_rng_state(noise)
            first_half(optimizer, model, t)
            tools.loss_fn(model, t)().backward()
            optimizer.second_step()
        weights = [x.tolist() for x in model.state_dict().values()]
        runs.append([weights, str(optimizer.state_dict())])
    assert runs[0] == runs[1]
    with pytest.raises(UserError, match="no step is half made"):
        optimizer.cancel_step()


@pytest.mark.parametrize("face", [GAM, partial(Regularized, regularizer=TWO)])
def test_rules_of_more_gradients_name_the_closure(face: Any) -> None:
    model = tools.network()
    optimizer = face(torch.optim.SGD(model.parameters(), lr=0.1))
    tools.loss_fn(model, 0)().backward()
    start, grads = tools.weights(model), [p.grad for p in model.parameters()]
    with pytest.raises(UserError, match=r"use step\(closure\)"):
        optimizer.first_step()
    assert torch.equal(tools.weights(model), start)
    assert all(p.grad is grad for p, grad in zip(model.parameters(), grads))


def test_broken_passes_leave_the_weights() -> None:
    model, alone = tools.network(), tools.network()
    optimizer, reference = made(SAM, model), made(SAM, alone)
    (tools.loss_fn(model, 0)() * torch.nan).backward()
    with pytest.raises(FloatingPointError, match="weights are as before"):
        optimizer.first_step()
    optimizer.zero_grad()
    tools.loss_fn(model, 0)().backward()
    optimizer.first_step()
    (tools.loss_fn(model, 0)() * torch.nan).backward()
    with pytest.raises(FloatingPointError, match="perturbed point"):
        optimizer.second_step()
    assert torch.equal(tools.weights(model), tools.weights(alone))
    halves(optimizer, model, range(2))
    tools.train(reference, alone, range(2))
    assert torch.equal(tools.weights(model), tools.weights(alone))


def test_around_a_learned_optimizer_and_a_guard() -> None:
    def face(model: nn.Module) -> SAM:
        guard = GuardConfig(every=1, warmup=1, steps=2)
        return SAM(Learned(model, moved("attention"), num_steps=20, guard=guard))

    one, two = tools.network(torch.float32), tools.network(torch.float32)
    by_closure, by_halves = face(one), face(two)
    tools.train(by_closure, one, range(3))
    halves(by_halves, two, range(3))
    assert torch.equal(tools.weights(one), tools.weights(two))
    by_halves.zero_grad()
    loss = tools.loss_fn(two, 3)()
    loss.backward()
    with pytest.raises(UserError, match=r"call first_step\(loss\)"):
        by_halves.first_step()
    by_halves.zero_grad()
    loss = tools.loss_fn(two, 3)() * torch.nan
    loss.backward()
    assert by_halves.first_step(loss) is False
    with pytest.warns(UserWarning, match="is left out"):
        by_halves.second_step()
    assert tools.weights(two).isfinite().all()


def test_schedulers_and_hooks_see_one_step() -> None:
    model = tools.network()
    optimizer = made(SAM, model)
    scheduler, seen = StepLR(optimizer, 2, 0.5), list[str]()
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    for t in range(2):
        halves(optimizer, model, [t])
        scheduler.step()
    assert seen == ["before", "after"] * 2 and optimizer.param_groups[0]["lr"] == 0.01
