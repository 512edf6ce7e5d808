"""The guard: its decisions as pure logic, and the hand-over to AdamW and back in training."""

from __future__ import annotations

import io
import math
import warnings

import pytest
import torch
from torch import Tensor, nn

from lo_framework.learned import make_learned
from lo_framework.optim import GuardConfig, Learned
from lo_framework.optim.learned.guard import DEFAULT_LR, RETREAT, Guard
from lo_framework.spec import UserError
from tests.lo_framework.optim.tools import flat, generator, moved, parameters

QUICK = GuardConfig(warmup=3, every=4, steps=6, decay=0.5)


def feed(guard: Guard, losses: list[float], rms: float | None = None) -> list[bool]:
    """Steps of a training that takes snapshots when due; whether each loss was a violation."""
    verdicts = []
    for loss in losses:
        verdicts.append(guard.violated(loss))
        if verdicts[-1]:
            guard.activate()
            continue
        if guard.due:
            guard.keep()
        guard.updated(None if guard.remaining else 0.01 if rms is None else rms)
    return verdicts


def test_falling_and_noisy_losses_never_violate() -> None:
    g = generator(0)
    losses = [
        2.3 * math.exp(-t / 100) * (1 + 0.5 * float(torch.randn((), generator=g)))
        for t in range(500)
    ]
    guard = Guard(GuardConfig())
    assert not any(feed(guard, losses)) and guard.activations == 0


def test_a_loss_that_is_not_finite_violates_at_once() -> None:
    for bad in (math.nan, math.inf, -math.inf):
        assert feed(Guard(GuardConfig()), [1.0, bad]) == [False, True]
    assert feed(Guard(GuardConfig()), [math.nan]) == [True]


def test_a_rising_average_violates_after_the_warmup() -> None:
    guard = Guard(QUICK)
    assert feed(guard, [1.0, 10.0, 10.0]) == [False] * 3  # in the warm-up
    assert feed(guard, [10.0]) == [True]
    guard = Guard(QUICK)
    assert not any(feed(guard, [1.0] * 10 + [2.9]))  # one outlier; its average, 1.95, is below 2.05
    assert feed(guard, [2.9]) == [True]


def test_limit_has_a_margin_near_zero_and_for_negative_losses() -> None:
    guard = Guard(GuardConfig(factor=2.0, margin=0.1))
    feed(guard, [4.0])
    guard.now.best = 0.001
    assert guard.limit == pytest.approx(0.402)
    guard.now.best = -3.0
    assert guard.limit == pytest.approx(0.4)


def test_snapshots_are_taken_at_good_times_only() -> None:
    guard = Guard(QUICK)
    taken = []
    for t, loss in enumerate([1.0] * 6 + [1.4, 1.9, 1.9, 1.9, 1.0, 1.0, 1.0]):
        assert not guard.violated(loss)
        if guard.due:
            taken.append(t)
            guard.keep()
        guard.updated(0.01)
    assert taken == [0, 4, 10]  # at steps 8 and 9 the average was on its way to the limit


def test_activation_goes_back_to_the_trend_of_the_snapshot() -> None:
    guard = Guard(QUICK)
    feed(guard, [1.0] * 4 + [0.5])
    kept = guard.now.ema
    assert feed(guard, [0.5, math.nan]) == [False, True]
    assert (guard.activations, guard.remaining, guard.now.ema) == (1, QUICK.steps, kept)
    assert not any(feed(guard, [0.7] * (QUICK.steps - 1))) and guard.remaining == 1
    feed(guard, [0.7])
    assert guard.remaining == 0


def test_learning_rate_is_the_geometric_mean_of_recent_updates() -> None:
    guard = Guard(QUICK)
    feed(guard, [1.0] * 5, rms=0.02)
    guard.keep()
    feed(guard, [math.nan])
    assert guard.lr == pytest.approx(0.02)
    feed(guard, [math.inf])  # under AdamW
    assert guard.lr == pytest.approx(0.02 * RETREAT) and guard.activations == 2
    assert feed(Guard(QUICK), [math.nan]) == [True]
    untried = Guard(QUICK)
    untried.activate()
    assert untried.lr == DEFAULT_LR
    fixed = Guard(GuardConfig(lr=0.5))
    feed(fixed, [1.0, math.nan])
    assert fixed.lr == 0.5
    mixed = Guard(GuardConfig(decay=0.5))
    for rms in (1e-2, 1e-4, 0.0):  # a step that changes nothing says nothing
        mixed.updated(rms)
    assert mixed.now.log_rms == pytest.approx(math.log(1e-3))


def test_guard_state_round_trip() -> None:
    guard, losses = Guard(QUICK), [1.0, 0.9, 0.8, 0.9, 0.8, math.nan, 0.9]
    feed(guard, losses)
    other = Guard(QUICK)
    other.load_state_dict(guard.state_dict())
    assert other.__dict__ == guard.__dict__
    assert feed(other, [0.9] * 7 + [9.0] * 3) == feed(guard, [0.9] * 7 + [9.0] * 3)


BAD_SETTINGS = [
    {"factor": 1.0},
    {"decay": 1.0},
    {"steps": 0},
    {"every": 0},
    {"lr": 0.0},
    {"margin": -1},
]


@pytest.mark.parametrize("bad", BAD_SETTINGS)
def test_config_refuses(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="guard"):
        GuardConfig(**bad)  # type: ignore[arg-type]


def problem(params: list[nn.Parameter]) -> Tensor:
    return torch.stack([(p - 1).square().sum() for p in params]).sum()


def train(face: Learned, params: list[nn.Parameter], steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        face.zero_grad()
        loss = problem(params)
        loss.backward()
        face.step(loss=loss)
        losses.append(float(loss.detach()))
    return losses


def diverging(lr: float) -> Learned:
    params = parameters()
    learned = make_learned(f"hyper-adamw:lr={lr}")
    return Learned(
        params, learned, num_steps=100, guard=GuardConfig(warmup=5, every=5, steps=30, lr=0.05)
    )


def test_guard_rescues_a_diverging_training() -> None:
    face = diverging(lr=30.0)
    params = face.param_groups[0]["params"]
    with pytest.warns(UserWarning, match="AdamW") as caught:
        losses = train(face, params, 30)
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
    assert face.state == {} and face._updates == updates
    train(face, params, QUICK.steps)
    assert face.state == {} and face._fallback is not None and not face._fallback.in_charge
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


def test_an_update_that_is_not_finite_is_taken_back() -> None:
    params = parameters()
    face = Learned(params, moved("mlp"), num_steps=100, guard=True)
    train(face, params, 3)
    for p in params:
        p.grad = torch.full_like(p, torch.nan)
    with pytest.warns(UserWarning, match="not finite"):
        face.step(loss=1.0)
    assert torch.isfinite(flat(params)).all() and face.guard_activations == 1


@pytest.mark.parametrize("spec", ["attention", "mlp"])
def test_a_quiet_guard_changes_nothing_and_measures_updates(spec: str) -> None:
    models = [parameters(), parameters()]
    plain = Learned(models[0], moved(spec), num_steps=20, lr=0.5)
    guarded = Learned(models[1], moved(spec), num_steps=20, lr=0.5, guard=GuardConfig(decay=0.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for face, params in zip((plain, guarded), models):
            train(face, params, 10)
            before = flat(params)
            train(face, params, 1)
    assert torch.equal(flat(models[0]), flat(models[1])) and plain.guard_activations == 0
    rms = (flat(models[1]) - before).square().mean().sqrt() / 0.5
    assert math.exp(guarded._fallback.guard.now.log_rms or 0.0) == pytest.approx(
        float(rms), rel=1e-3
    )  # type: ignore[union-attr]


def test_guard_needs_the_loss() -> None:
    params = parameters()
    face = Learned(params, make_learned("hyper-adamw"), num_steps=10, guard=True)
    problem(params).backward()
    with pytest.raises(UserError, match="observe"):
        face.step()
    face.observe(problem(params))
    face.step()
    face.step(lambda: problem(params))
    assert face._updates == 2


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
