"""Prodigy and Schedule-Free are their packages' optimizers, trained by a plain loop."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import nn

from lo_framework.eval.baselines import grid_of, make_baseline, make_thetas
from lo_framework.eval.baselines.torch_runs import TorchRollout, torch_rollout
from lo_framework.inner.rollout import _INIT, _TRAIN, seeded
from lo_framework.optimizees import make_tasks
from lo_framework.spec import UserError

STEPS = 12
SPEC = "mlp:hidden=4,batch=8"


class Loop:
    """A plain training loop on the task of ``spec``, from seed 3."""

    def __init__(self, spec: str) -> None:
        (self.task,) = make_tasks(spec)
        params, self.buffers = self.task.init(seeded(3, _INIT))
        self.params = {n: nn.Parameter(x.clone()) for n, x in params.items()}
        self.stream = seeded(3, _TRAIN)

    def loss(self, stream: torch.Generator) -> torch.Tensor:
        batch = self.task.batch("train", stream)
        loss, self.buffers = self.task.loss(self.params, self.buffers, batch, torch.tensor(0))
        self.buffers = {n: x.detach() for n, x in self.buffers.items()}
        return loss

    def train(self, optimizer: torch.optim.Optimizer, cosine: bool) -> list[float]:
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=STEPS)
        losses = []
        for _ in range(STEPS):
            loss = self.loss(self.stream)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if cosine:
                schedule.step()
            losses.append(float(loss.detach()))
        return losses

    def final(self) -> float:
        detached = {n: p.detach() for n, p in self.params.items()}
        return float(self.task.metrics(detached, self.buffers, self.task.full("train"))["loss"])


def rolled(name: str, setting: dict[str, float], spec: str = SPEC, **told: Any) -> TorchRollout:
    baseline, (task,) = make_baseline(name), make_tasks(spec)
    thetas = make_thetas(baseline, [setting])
    return torch_rollout(task, baseline, thetas, [3], STEPS, splits=("train",), **told)


@pytest.mark.parametrize("cosine", [0.0, 1.0])
def test_prodigy_is_the_package(cosine: float, capsys: pytest.CaptureFixture[str]) -> None:
    prodigyopt = pytest.importorskip("prodigyopt")
    got = rolled("prodigy:d0=0.0001", {"lr": 2.0, "cosine": cosine})
    assert capsys.readouterr().out == ""
    loop = Loop(SPEC)
    optimizer = prodigyopt.Prodigy(loop.params.values(), lr=2.0, weight_decay=0.01, d0=1e-4)
    losses = loop.train(optimizer, bool(cosine))
    torch.testing.assert_close(got.train[0, 0], torch.tensor(losses), rtol=1e-5, atol=1e-6)
    assert float(got.final["train.loss"]) == pytest.approx(loop.final(), rel=1e-5)
    assert float(got.extra["d"]) == pytest.approx(optimizer.param_groups[0]["d"], rel=1e-5)
    assert float(got.extra["d"]) > 1e-4


@pytest.mark.parametrize("spec", [SPEC, "cnn:channels=2x3,batch=8,norm=batch"])
def test_schedule_free_is_the_package_evaluated_at_its_average(spec: str) -> None:
    schedulefree = pytest.importorskip("schedulefree")
    got = rolled("schedule-free", {"lr": 0.02, "warmup": 0.25}, spec)
    loop = Loop(spec)
    optimizer = schedulefree.AdamWScheduleFree(
        loop.params.values(), lr=0.02, weight_decay=0.01, warmup_steps=3
    )
    optimizer.train()
    losses = loop.train(optimizer, cosine=False)
    torch.testing.assert_close(got.train[0, 0], torch.tensor(losses), rtol=1e-5, atol=1e-6)
    last = loop.final()
    optimizer.eval()
    with torch.no_grad():
        for _ in range(50 if loop.buffers else 0):  # any batches: settled is settled
            loop.loss(seeded(3, 0))
    average = loop.final()
    exact = 1e-5 if spec == SPEC else 0.05
    assert float(got.final["train.loss"]) == pytest.approx(average, rel=exact)
    assert abs(average - last) > 1e-3 * average


def test_who_watches_schedule_free_sees_the_average_and_changes_nothing() -> None:
    pytest.importorskip("schedulefree")
    setting, seen = {"lr": 0.02, "warmup": 0.25}, []
    watched = rolled("schedule-free", setting, on_carry=lambda t, carry, draw: seen.append(carry))
    alone = rolled("schedule-free", setting)
    torch.testing.assert_close(watched.train, alone.train, rtol=0, atol=0)
    (task,) = make_tasks(SPEC)
    from lo_framework.layout import Layout

    layout = Layout.of({n: tuple(x.shape) for n, x in task.init(seeded(3, _INIT))[0].items()})
    params = layout.unflatten(seen[-1].params[0])
    loss = task.metrics(params, {}, task.full("train"))["loss"]
    assert float(watched.final["train.loss"]) == pytest.approx(float(loss), rel=1e-6)


def test_budgets_are_those_of_adamw() -> None:
    assert len(grid_of("prodigy")) == len(grid_of("schedule-free")) == len(grid_of("adamw")) == 16
    assert {setting.get("cosine", 0.0) for setting in grid_of("schedule-free")} == {0.0}


@pytest.mark.parametrize(
    ("name", "module"), [("prodigy", "prodigyopt"), ("schedule-free", "schedulefree")]
)
def test_a_missing_package_is_one_line(
    name: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"^needs {module} \(the baseline {name}\): pip install"):
        make_baseline(name)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("prodigy:d0=0", "d0 and d_coef must be positive"),
        ("schedule-free:warmup=0", r"warmup must be in \(0, 1\]"),
        ("schedule-free:beta1=0", "beta1 positive"),
    ],
)
def test_settings_that_cannot_be(spec: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_baseline(spec)
