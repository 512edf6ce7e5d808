"""``--inner-backend higher``: the vmapped engine's meta-gradient by other means, and modules that
vmap cannot take.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lo_framework.estimators import Unroller, make_estimator
from lo_framework.estimators.higher import import_higher, make_higher
from lo_framework.estimators.state import state_from_tensors, state_to_tensors
from lo_framework.inner.step import Family
from lo_framework.learned import make_learned
from lo_framework.objectives import make_objective
from lo_framework.optimizees.from_module import ModuleTask
from lo_framework.spec import UserError
from tests.lo_framework.small_tasks import (
    INF_LOSS,
    NAN_GRADIENT,
    NAN_LOSS,
    TinyNet,
    copied,
    doubled,
    in_step,
    once,
    with_buffer,
)

pytest.importorskip("higher", reason="the backend is the package higher", exc_type=ImportError)


def both(spec: str, objective: str, num: int = 2) -> tuple[Any, Any, Any, Any]:
    """The vmapped estimator, this one, theta and a state one truncation in, with one episode about
    to end.
    """
    learned = doubled("hyper-adamw:lr=0.05,weight_decay=0.1,beta2=0.9", spread=0.02)
    family = Family(TinyNet(), learned)
    arguments = (family, make_objective(objective), once(9, 3), num)
    ours, other = make_estimator(spec, *arguments), make_higher(spec, Unroller(*arguments))
    state = in_step(ours.init_state(learned.theta(), torch.Generator().manual_seed(0)))
    _, state = ours.estimate(learned.theta(), state)
    stop = state.stop.clone()
    stop[0] = state.t[0] + 2
    return ours, other, learned.theta(), replace(state, stop=stop)


def assert_same(found: Any, expected: Any) -> None:
    (estimate, state), (right, end) = found, expected
    assert set(estimate.grad) == set(right.grad)
    for name, g in right.grad.items():
        assert g.abs().max() > 0
        torch.testing.assert_close(estimate.grad[name], g, rtol=1e-9, atol=1e-13)
    assert estimate.metrics == pytest.approx(right.metrics, rel=1e-12)
    tensors, others = state_to_tensors(state), state_to_tensors(end)
    assert set(tensors) == set(others)
    for name, x in others.items():
        torch.testing.assert_close(tensors[name], x, rtol=1e-11, atol=1e-13, msg=name)


@pytest.mark.parametrize("objective", ["valid", "train", "valid:train=0.3,log=0.1"])
@pytest.mark.parametrize("spec", ["tbptt", "tbptt:second_order=false", "tbptt:clip_task=0.001"])
def test_same_as_the_vmapped_engine(spec: str, objective: str) -> None:
    """Meta-gradients, metrics and the state after each of three truncations, restarts and masked
    steps among them.
    """
    ours, other, theta, state = both(spec, objective)
    here, there = copied(state), copied(state)
    for _ in range(3):
        expected, found = ours.estimate(theta, there), other.estimate(theta, here)
        assert_same(found, expected)
        (_, here), (_, there) = found, expected


@pytest.mark.parametrize("illness", [NAN_LOSS, INF_LOSS, NAN_GRADIENT])
def test_an_ill_task_is_left_out_and_counted_as_there(illness: float) -> None:
    ours, other, theta, state = both("tbptt", "valid:train=0.3", num=3)
    ill = with_buffer(state, "sick", torch.tensor([0.0, illness, 0.0]))
    expected, found = ours.estimate(theta, copied(ill)), other.estimate(theta, copied(ill))
    assert_same(found, expected)
    assert found[0].metrics["nonfinite"] == pytest.approx(1 / 3)
    assert found[1].carry.alive.tolist() == [True, False, True]


def test_nothing_is_kept_between_truncations() -> None:
    _, other, theta, state = both("tbptt", "valid")
    sizes = []
    for _ in range(3):
        _, state = other.estimate(theta, state)
        sizes.append(len(other.patched._fast_params))
        assert not state.carry.params.requires_grad
    assert sizes == [sizes[0]] * 3


def rows(num: int = 60) -> dict[str, tuple[Tensor, ...]]:
    """Sequences ``[5, 2]`` whose class is the sign of the sum of the first channel."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(num, 5, 2, generator=g)
    y = (x[..., 0].sum(1) > 0).long()
    return {"train": (x[:40], y[:40]), "valid": (x[40:50], y[40:50]), "test": (x[50:], y[50:])}


class Recurrent(nn.Module):
    """No batching rule under vmap with weights of its own for every task."""

    def __init__(self) -> None:
        super().__init__()
        self.core = nn.LSTM(2, 6, batch_first=True)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.core(x)[0][:, -1])


class Branching(nn.Module):
    """Python control flow that looks at data."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = nn.Linear(10, 2), nn.Linear(10, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return self.low(x) if x.mean() < 0 else self.high(x).relu()


def module_task(module: nn.Module) -> ModuleTask:
    task = ModuleTask(module, F.cross_entropy, rows(), name="user", batch_size=16, num_classes=2)
    task.vmappable = False  # type: ignore[attr-defined]
    return task


@pytest.mark.parametrize("module", [Recurrent(), Branching()], ids=["nn.LSTM", "branching"])
def test_meta_trains_modules_that_vmap_cannot_take(module: nn.Module) -> None:
    task = module_task(module)
    learned = make_learned("hyper-adamw:lr=0.003")
    objective = make_objective("valid:train=0.5")
    estimator = make_higher("tbptt", Unroller(Family(task, learned), objective, once(6), 1))
    state = in_step(estimator.init_state(learned.theta(), torch.Generator().manual_seed(0)))
    outer, curve = torch.optim.Adam(learned.parameters(), lr=0.02), []
    for _ in range(9):
        found, state = estimator.estimate(learned.theta(), state)
        assert found.metrics["nonfinite"] == 0
        curve.append(found.metrics["meta_loss"])
        for name, p in learned.named_parameters():
            assert found.grad[name].abs().max() > 0
            p.grad = found.grad[name]
        outer.step()
    assert sum(curve[-3:]) < 0.9 * sum(curve[:3])


@pytest.mark.parametrize("module", [Recurrent(), Branching()], ids=["nn.LSTM", "branching"])
def test_the_looped_engine_agrees_on_them(module: nn.Module) -> None:
    """``vmappable = False`` makes our own step a plain loop: an oracle here, and what validation
    runs.
    """
    learned = make_learned("hyper-adamw:lr=0.01")
    family = Family(module_task(module), learned)
    arguments = (family, make_objective("valid:train=0.5"), once(4), 2)
    ours, other = make_estimator("tbptt", *arguments), make_higher("tbptt", Unroller(*arguments))
    state = in_step(ours.init_state(learned.theta(), torch.Generator().manual_seed(0)))
    expected, _ = ours.estimate(learned.theta(), copied(state))
    found, _ = other.estimate(learned.theta(), copied(state))
    for name, g in expected.grad.items():
        torch.testing.assert_close(found.grad[name], g, rtol=1e-4, atol=1e-6)


def test_resumed_run_repeats_the_uninterrupted_one() -> None:
    learned = make_learned("hyper-adamw:lr=0.01")
    family = Family(TinyNet(torch.float32), learned)
    arguments = ("tbptt", Unroller(family, make_objective("valid"), once(5, 3), 2))
    estimator, theta = make_higher(*arguments), learned.theta()
    _, state = estimator.estimate(
        theta, estimator.init_state(theta, torch.Generator().manual_seed(0))
    )
    again, fresh = state_from_tensors(state_to_tensors(state)), make_higher(*arguments)
    for _ in range(2):
        (expected, state), (found, again) = (
            estimator.estimate(theta, state),
            fresh.estimate(theta, again),
        )
        assert all(torch.equal(g, expected.grad[n]) for n, g in found.grad.items())
        ours, theirs = state_to_tensors(state), state_to_tensors(again)
        assert all(torch.equal(x, theirs[n]) for n, x in ours.items())


def test_the_learned_optimizer_itself_is_not_touched() -> None:
    _, other, theta, state = both("tbptt", "valid")
    learned = other.unroller.family.learned
    moved = {n: x + 1e-3 for n, x in theta.items()}
    other.estimate(moved, state)
    assert all(torch.equal(p, theta[n]) and p.grad is None for n, p in learned.named_parameters())


@pytest.mark.parametrize(
    "spec, kind, objective, words",
    [
        ("tbptt", "attention", "valid", "hyper-adamw only, not attention"),
        ("tbptt", "mlp", "valid", "hyper-adamw only, not mlp"),
        ("tbptt:segments=4", "hyper-adamw", "valid", "segments"),
        ("pes", "hyper-adamw", "valid", "tbptt only"),
        ("tbptt", "hyper-adamw", "gradient", "one loss only, as valid and train, not gradient"),
        ("tbptt", "hyper-adamw", "valid+gen_gap", r"one loss only.* not valid\+gen_gap"),
        ("tbptt", "hyper-adamw", "valid+train", r"one loss only.* not valid\+train"),
    ],
)
def test_what_it_cannot_do_is_said(spec: str, kind: str, objective: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        family = Family(TinyNet(), make_learned(kind).double())
        make_higher(spec, Unroller(family, make_objective(objective), once(4), 1))


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "higher", None)
    with pytest.raises(UserError, match=r"needs higher .*lo-framework\[train\]"):
        import_higher()
