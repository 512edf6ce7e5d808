"""The guard at work: the hand-over to AdamW and back in training."""

from __future__ import annotations

import io
import math
import warnings

import pytest
import torch
from torch import Tensor, nn

from lo_framework.learned import make_learned
from lo_framework.optim import GuardConfig, Learned
from lo_framework.optim.learned.guard import PATIENCE
from tests.lo_framework.optim.tools import flat, moved, parameters

QUICK = GuardConfig(warmup=3, every=4, steps=6, decay=0.5)


def problem(params: list[nn.Parameter]) -> Tensor:
    return torch.stack([(p - 1).square().sum() for p in params]).sum()


def train(
    face: Learned, params: list[nn.Parameter], steps: int, *, told: bool = True
) -> list[float]:
    losses = []
    for _ in range(steps):
        face.zero_grad()
        loss = problem(params)
        loss.backward()
        face.step(loss=loss if told else None)
        losses.append(float(loss.detach()))
    return losses


def diverging(lr: float) -> Learned:
    params = parameters()
    learned = make_learned(f"hyper-adamw:lr={lr}")
    config = GuardConfig(warmup=5, every=5, steps=30, lr=0.05)
    return Learned(params, learned, num_steps=100, guard=config)


@pytest.mark.parametrize("told", [True, False])
def test_guard_rescues_a_diverging_training(told: bool) -> None:
    face = diverging(lr=30.0)
    params = face.param_groups[0]["params"]
    with pytest.warns(UserWarning, match="AdamW") as caught:
        losses = train(face, params, 30, told=told)
    assert face.guard_activations == 1 == len(caught)
    message = str(caught[0].message)
    assert "\n" not in message and "next 30 steps (activation 1)" in message
    assert max(losses) > 100 * losses[0] and losses[-1] < losses[0]


def test_snapshot_is_restored_and_gradients_of_that_step_are_not_used() -> None:
    face = diverging(lr=30.0)
    params = face.param_groups[0]["params"]
    start = flat(params)
    with pytest.warns(UserWarning, match="guard"):
        while not face.guard_activations:
            train(face, params, 1)
    assert torch.equal(
        flat(params), start
    )  # the snapshot before the first update: no better one came


def test_learned_optimizer_takes_over_again_with_fresh_state() -> None:
    params = parameters()
    face = Learned(params, moved("attention"), num_steps=100, guard=QUICK)
    train(face, params, 5)
    updates = face._updates
    face.zero_grad()
    problem(params).backward()
    with pytest.warns(UserWarning, match="nan"):
        face.step(loss=math.nan)
    assert float(face._store.reduced["step"]) == 0 and face._updates == updates
    train(face, params, QUICK.steps)
    assert face._fallback is not None and not face._fallback.in_charge
    assert float(face._store.reduced["step"]) == 0 and len(face.state) == len(params)
    train(face, params, 2)
    assert float(face._store.reduced["step"]) == 2 and face._updates == updates + QUICK.steps + 2  # type: ignore[union-attr]


def test_adamw_phase_is_adamw() -> None:
    params, twin = parameters(), parameters()
    face = Learned(
        params,
        make_learned("hyper-adamw"),
        num_steps=100,
        guard=GuardConfig(lr=0.02, steps=8),
        lr=0.5,
    )
    with pytest.warns(UserWarning, match="guard"):
        problem(params).backward()
        face.step(loss=math.inf)
    train(face, params, 8)
    adamw = torch.optim.AdamW(twin, lr=0.01)
    for _ in range(8):
        adamw.zero_grad()
        problem(twin).backward()
        adamw.step()
    assert torch.equal(flat(params), flat(twin))


def break_gradients(face: Learned, params: list[nn.Parameter]) -> None:
    for p in params:
        p.grad = torch.full_like(p, torch.nan)
    face.step()


def test_gradients_that_are_not_finite_are_left_out_unless_they_go_on() -> None:
    params = parameters()
    face = Learned(params, moved("mlp"), num_steps=100)
    train(face, params, 3)
    before, updates = flat(params), face._updates
    with pytest.warns(UserWarning, match="is left out") as caught:
        for _ in range(PATIENCE - 1):
            break_gradients(face, params)
    assert torch.equal(flat(params), before) and face._updates == updates
    assert face.guard_activations == 0 and len(caught) == 1  # said once
    with pytest.warns(UserWarning, match="AdamW"):
        break_gradients(face, params)
    assert face.guard_activations == 1


@pytest.mark.filterwarnings("ignore:Learned")
def test_a_batch_that_is_not_finite_now_and_then_does_not_stop_the_training() -> None:
    params = parameters()
    face = Learned(params, make_learned("hyper-adamw:lr=0.02"), num_steps=300)
    start = float(problem(params).detach())
    for t in range(300):
        break_gradients(face, params) if t % 10 == 5 else train(face, params, 1)
    assert face.guard_activations == 0 and float(problem(params).detach()) < 0.01 * start


def test_where_nothing_is_good_that_is_said_once() -> None:
    params = parameters()
    with torch.no_grad():
        params[0].fill_(torch.nan)
    face = Learned(params, moved("mlp"), num_steps=100)
    with pytest.warns(UserWarning, match="the guard is off") as caught:
        train(face, params, 20)
    assert len(caught) == 1


@pytest.mark.parametrize("spec", ["attention", "mlp"])
def test_a_quiet_guard_changes_nothing_and_measures_updates(spec: str) -> None:
    models = [parameters(), parameters()]
    plain = Learned(models[0], moved(spec), num_steps=20, lr=0.5, guard=False)
    guarded = Learned(models[1], moved(spec), num_steps=20, lr=0.5, guard=GuardConfig(decay=0.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for face, params in zip((plain, guarded), models):
            train(face, params, 10)
            before = flat(params)
            train(face, params, 1)
            after = flat(params)
            train(face, params, 1)
    assert torch.equal(flat(models[0]), flat(models[1])) and plain.guard_activations == 0
    assert guarded._fallback is not None and guarded.guard_activations == 0
    rms = float((after - before).square().mean().sqrt()) / 0.5
    assert math.exp(guarded._fallback.guard.now.log_rms or 0.0) == pytest.approx(rms, rel=1e-3)


def test_other_weights_are_no_move_of_the_optimizer() -> None:
    """Weights that are loaded in the middle of a training raise no alarm, and are what is kept."""
    params = parameters()
    face = Learned(params, moved("attention"), num_steps=100, guard=GuardConfig(every=1000))
    train(face, params, 5)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        for p in params:
            p.copy_(100.0 * torch.ones_like(p))
        with torch.enable_grad():
            train(face, params, 1)
    with pytest.warns(UserWarning, match="nan"):
        face.step(loss=math.nan)
    assert (flat(params) > 90).all()


def test_other_weights_with_a_higher_loss_stay() -> None:
    params = parameters()
    face = Learned(
        params, make_learned("hyper-adamw:lr=0.01"), num_steps=100, guard=GuardConfig(warmup=2)
    )
    train(face, params, 10)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        for p in params:
            p.copy_(5.0 * torch.ones_like(p))
        with torch.enable_grad():
            train(face, params, 5)
    assert (flat(params) > 3).all()


@pytest.mark.parametrize("how", ["added", "unfrozen"])
def test_parameters_that_came_after_the_snapshot_go_back_too(how: str) -> None:
    params = parameters()
    last = params[-1].requires_grad_(how == "added")
    first = params[:-1] if how == "added" else params
    face = Learned(first, moved("attention"), num_steps=100, guard=GuardConfig(every=1000))
    train(face, params, 3)
    if how == "added":
        face.add_param_group({"params": [last]})
    last.requires_grad_(True)
    start = last.detach().clone()
    train(face, params, 2)
    with torch.no_grad():
        last.fill_(torch.nan)
    with pytest.warns(UserWarning, match="not finite"):
        train(face, params, 1, told=False)
    assert torch.equal(last, start) and torch.isfinite(flat(params)).all()
    train(face, params, 5)
    assert face.guard_activations == 1


@pytest.mark.parametrize("bad_step", [3, 8])
def test_resume_under_the_guard(bad_step: int) -> None:
    """Saved while the learned optimizer is at work (8 comes later) and while AdamW is (3 came
    before).
    """

    def start() -> tuple[list[nn.Parameter], Learned]:
        params = parameters()
        return params, Learned(params, moved("attention"), num_steps=40, guard=QUICK)

    def go(face: Learned, params: list[nn.Parameter], steps: range) -> None:
        for t in steps:
            face.zero_grad()
            loss = problem(params)
            loss.backward()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                face.step(loss=loss * (math.nan if t == bad_step else 1.0))

    whole, face = start()
    go(face, whole, range(6))
    file = io.BytesIO()
    torch.save({"optimizer": face.state_dict(), "params": [p.detach() for p in whole]}, file)
    go(face, whole, range(6, 20))

    params, resumed = start()
    saved = torch.load(io.BytesIO(file.getvalue()))
    for p, x in zip(params, saved["params"]):
        p.detach().copy_(x)
    resumed.load_state_dict(saved["optimizer"])
    go(resumed, params, range(6, 20))
    assert torch.equal(flat(params), flat(whole))
    assert resumed.guard_activations == face.guard_activations == 1
