"""Ordinary models in ordinary loops: the benchmark itself, on few problems and steps."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from benchmarks import ordinary

pytestmark = pytest.mark.filterwarnings("ignore:Learned")


def test_two_problems_and_a_gan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = {name: ordinary.PROBLEMS[name]._replace(steps=30) for name in ("mlp", "residual")}
    monkeypatch.setattr(ordinary, "PROBLEMS", short)
    monkeypatch.setattr(ordinary, "GAN_STEPS", 5)
    words = ["--quick", "--problems", "mlp,residual,gan", "--out", str(tmp_path)]
    content = ordinary.main(words)
    assert (tmp_path / "ordinary_quick.json").exists()
    for name in short:
        runs = content["runs"][name]
        firsts = [[run["first"] for run in runs[arm]] for arm in runs]
        assert all(x == firsts[0] for x in firsts)  # same weights, same first rows
        assert runs["unguarded"][0]["final"] == runs["guarded"][0]["final"]
        assert content["problems"][name]["guarded"]["activations"] == 0
    assert content["over AdamW"]["guarded"]["iqm"] > 0
    assert content["problems"]["gan"]["unguarded"]["maker"] > 0


def test_a_run_that_is_not_finite_is_infinitely_worse_and_small_losses_are_alike() -> None:
    adamw = {"final": 1e-5, "first": 2.0}
    assert ordinary.ratio({"final": math.nan}, adamw) == math.inf
    assert ordinary.ratio({"final": 1e-9}, adamw) == 1.0
    assert ordinary.ratio({"final": 0.2}, adamw) == pytest.approx(10.0)


@pytest.mark.parametrize(
    "name", [n for n in ordinary.PROBLEMS if "bert" not in n and "gpt" not in n]
)
def test_every_problem_has_a_loss_with_a_gradient(name: str) -> None:
    torch.manual_seed(0)
    problem = ordinary.PROBLEMS[name]
    model, (x, y) = problem.build(), problem.data()
    loss = problem.loss(model, (x[:8], y[:8]))
    loss.backward()
    assert loss.isfinite() and all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize("steps", [5, 10, 20])
@pytest.mark.parametrize("name", ["iris", "wine", "cnn"])
def test_short_runs_of_the_usual_step_are_no_alarm_and_broken_ones_are(
    name: str, steps: int, told: bool
) -> None:
    problem = ordinary.PROBLEMS[name]._replace(steps=steps)
    for lr, activations in ((1.0, 0), (10.0, 1)):
        torch.manual_seed(ordinary.FIRST_SEED)
        model = problem.build()
        optimizer = ordinary.Learned(model, "general", num_steps=steps, lr=lr)
        x, y = problem.data()
        for _ in range(steps):
            index = torch.randint(len(x), (problem.rows,))
            loss = problem.loss(model, (x[index], y[index]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step(loss=loss if told else None)
        assert optimizer.guard_activations == activations, (lr, float(loss.detach()))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["unscaled", "full-batch"])
def test_targets_in_the_hundreds_and_the_same_rows_at_every_step_are_no_alarm(
    name: str, seed: int
) -> None:
    ways, first = ordinary.arms("general"), ordinary.FIRST_SEED + seed
    adamw, guarded = (
        ordinary.trained(ordinary.PROBLEMS[name], ways[arm], first) for arm in ("adamw", "guarded")
    )
    assert guarded["activations"] == 0 and ordinary.ratio(guarded, adamw) < 0.5
