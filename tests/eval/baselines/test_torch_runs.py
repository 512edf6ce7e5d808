"""Baselines that are real torch optimizers: paired with the vmapped ones, and measured the same
way.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from lo_framework.eval import baselines
from lo_framework.eval.api import evaluate
from lo_framework.eval.baselines import make_baseline, make_thetas, register_baseline
from lo_framework.eval.baselines.hand_designed import AdamWConfig
from lo_framework.eval.baselines.torch_runs import TorchBaseline, torch_rollout
from lo_framework.eval.running.cells import Failure, Measured, plan_cells
from lo_framework.eval.running.pool import Workshop, drive
from lo_framework.eval.studies.evaluation import gradients_per_step
from lo_framework.inner.rollout import rollout
from lo_framework.learned import make_learned
from lo_framework.optim import MetaOptimize
from lo_framework.optimizees import make_tasks
from lo_framework.spec import UserError
from tests.eval.cells import run_cell

TINY = "mlp:hidden=4,batch=8"
SEEDS = (3, 4)


class TorchAdamW(TorchBaseline):
    """``noisy``: also draws from everything that a run offers, which must change nothing."""

    kind, Config = "torch-adamw", AdamWConfig
    noisy = False

    def build(self, run, settings):
        return torch.optim.AdamW(
            run.params.values(), lr=settings["lr"], weight_decay=self.config.weight_decay
        )

    def after_step(self, optimizer, t, run):
        assert t == run.t
        if self.noisy:
            torch.randn(3)
            for split in ("valid", "train"):
                loss = run.loss_fn(run.draw(split))
                assert loss.dim() == 0 and loss.requires_grad

    def counts(self, optimizer):
        return {
            "steps_seen": float(next(iter(optimizer.state.values()))["step"])
            if optimizer.state
            else 0.0
        }


class Noisy(TorchAdamW):
    kind = "noisy-adamw"
    noisy = True


@pytest.fixture(autouse=True)
def registered():
    for cls in (TorchAdamW, Noisy):
        register_baseline(cls.kind, [{"lr": 0.01, "cosine": 0.0}, {"lr": 0.03, "cosine": 0.0}])(cls)
    yield
    for cls in (TorchAdamW, Noisy):
        del baselines.BASELINES[cls.kind]


def measure(name: str, settings, spec: str = TINY, steps: int = 12) -> Measured:
    (task,), optimizer = make_tasks(spec), make_baseline(name)
    (cell,) = plan_cells(
        task.name, name, make_thetas(optimizer, settings), SEEDS, steps, ("train", "test")
    )
    return run_cell(cell, task, optimizer)


@pytest.mark.parametrize(
    "spec", [TINY, "cnn:channels=2x3,batch=8", "cnn:channels=2x3,batch=8,norm=batch"]
)
def test_equals_the_vmapped_adamw(spec: str) -> None:
    settings = [{"lr": 0.01, "cosine": 0.0}, {"lr": 0.03, "cosine": 1.0}]
    ours, vmapped, noisy = (
        measure(name, settings, spec) for name in ("torch-adamw", "adamw", "noisy-adamw")
    )
    np.testing.assert_allclose(ours.curves, vmapped.curves, rtol=1e-5, atol=1e-5)
    assert ours.metrics.keys() == vmapped.metrics.keys()
    for key, values in vmapped.metrics.items():
        np.testing.assert_allclose(ours.metrics[key], values, rtol=2e-5, atol=1e-5, err_msg=key)
    assert not ours.diverged.any() and ours.parameters == vmapped.parameters
    assert ours.state_floats == pytest.approx(vmapped.state_floats, rel=0.05)
    assert ours.seconds_per_step > 0
    np.testing.assert_array_equal(noisy.curves, ours.curves)


def test_counts_arrive_per_run() -> None:
    got = measure("torch-adamw", [{"lr": 0.01}, {"lr": 0.02}], steps=5)
    np.testing.assert_array_equal(got.extra["steps_seen"], np.full((2, 2), 5.0))


def test_a_run_that_is_not_finite_has_diverged_from_there_on() -> None:
    got = measure("torch-adamw", [{"lr": 0.01}, {"lr": 1e30}], "mlp-relu:hidden=4,batch=8")
    reference = measure("adamw", [{"lr": 0.01}, {"lr": 1e30}], "mlp-relu:hidden=4,batch=8")
    assert got.diverged.tolist() == reference.diverged.tolist() == [[False, False], [True, True]]
    np.testing.assert_array_equal(np.isfinite(got.curves), np.isfinite(reference.curves))
    assert (
        np.isinf(got.metrics["final_loss"][1]).all()
        and np.isnan(got.metrics["test_accuracy"][1]).all()
    )
    assert (got.extra["steps_seen"][1] < 12).all() and (got.extra["steps_seen"][0] == 12).all()


def test_all_steps_are_told_even_of_diverged_runs() -> None:
    (task,), optimizer, told = (
        make_tasks("mlp-relu:hidden=4,batch=8"),
        make_baseline("torch-adamw"),
        [],
    )
    thetas = make_thetas(optimizer, [{"lr": 0.01}, {"lr": 1e30}])
    (cell,) = plan_cells(task.name, "torch-adamw", thetas, SEEDS, 6, ("train",))
    run_cell(cell, task, optimizer, told.append)
    assert sum(told) == cell.work


def test_tuning_tables_and_comparisons_take_it_as_any_baseline() -> None:
    options = dict(
        baselines=("torch-adamw", "adamw:lr=0.01,cosine=0"), steps=6, seeds=2, tuning_seeds=1
    )
    result = evaluate(make_tasks(TINY), make_learned("hyper-adamw"), **options)
    arm = result.arm(f"{TINY}/digits", "torch-adamw")
    assert not arm.failure and arm.tuned and "steps_seen" in arm.runs[0].metrics
    assert gradients_per_step(make_baseline("torch-adamw")) == 1.0


def test_processes_give_the_same_bits(tmp_path) -> None:
    from lo_framework.eval.running.pool import Recipe

    name = "torch-metaoptimize:blocks=node,lr=0.01"
    (task,), optimizer = make_tasks(TINY), make_baseline(name)
    (cell,) = plan_cells(task.name, name, [optimizer.theta()], SEEDS, 4, ("train",))

    def plan():
        (outcome,) = yield [cell]
        return outcome

    recipe = Recipe(learned={})
    there = drive({"a": plan()}, Workshop(recipe=recipe), workers=2)["a"]
    here = drive({"a": plan()}, Workshop(tasks={task.name: task}, optimizers={name: optimizer}))[
        "a"
    ]
    assert not isinstance(there, Failure)
    np.testing.assert_array_equal(there.curves, here.curves)
    np.testing.assert_array_equal(there.extra["alpha"], here.extra["alpha"])


def test_no_optimizer_sees_test_data() -> None:
    from lo_framework.eval.baselines.torch_runs import Run

    run = Run(make_tasks(TINY)[0], 3, 0)
    with pytest.raises(UserError, match="may draw from train, valid"):
        run.draw("test")


@pytest.mark.parametrize("blocks", ["scalar", "tensor"])
def test_the_class_metaoptimize_equals_the_vmapped_one(blocks: str) -> None:
    settings = [
        {"lr": 0.003, "meta_lr": 0.03, "cosine": 0.0},
        {"lr": 0.02, "meta_lr": 0.1, "cosine": 1.0},
    ]
    ours = measure(f"torch-metaoptimize:blocks={blocks}", settings, steps=7)
    vmapped = measure(f"metaoptimize:blocks={blocks}", settings, steps=7)
    np.testing.assert_allclose(ours.curves, vmapped.curves, rtol=1e-4, atol=2e-5)
    counts = {
        "oscillating",
        "collapsing",
        "exploding",
        "skipped",
        "meta_steps",
        "block_windows",
        "blocks",
        "alpha",
    }
    assert set(ours.extra) == counts
    assert (ours.extra["meta_steps"] == 7).all() and (
        ours.extra["blocks"] == (1 if blocks == "scalar" else 4)
    ).all()
    assert (ours.extra["alpha"] != 0.003).all()
    assert ours.state_floats == pytest.approx(3, abs=0.1)


def test_warnings_of_diagnostics_are_counts() -> None:
    got = measure(
        "torch-metaoptimize:base=sgd,blocks=weight,lr=0.1", [{"lr": 1.0, "meta_lr": 1.0}], steps=60
    )
    assert (got.extra["exploding"] + got.extra["collapsing"] + got.extra["oscillating"] > 0).all()


def test_an_exact_trace_runs_by_its_closure() -> None:
    spec = "torch-metaoptimize:base=sgdm,meta=adam,trace=2x2,weight_decay=0"
    got = measure(spec, [{"lr": 0.01}], TINY, steps=4)
    (task,) = make_tasks(TINY)
    from lo_framework.inner.rollout import _INIT, _TRAIN, seeded

    params, buffers = task.init(seeded(SEEDS[0], _INIT))
    leaves = {n: nn.Parameter(x.clone()) for n, x in params.items()}
    optimizer = MetaOptimize(
        leaves.items(), 0.01, 0.01, base="sgdm", meta="adam", weight_decay=0.0, trace="2x2"
    )
    stream, losses = seeded(SEEDS[0], _TRAIN), []
    for _ in range(4):
        batch = task.batch("train", stream)
        losses.append(
            optimizer.step(lambda b=batch: task.loss(dict(leaves), buffers, b, torch.tensor(0))[0])
        )
    np.testing.assert_allclose(got.curves[0, 0], [float(x) for x in losses], rtol=1e-5)
    assert math.isfinite(got.metrics["final_loss"][0, 0])


@pytest.mark.parametrize("spec", [TINY, "cnn:channels=2x2,norm=batch,batch=8"])
def test_what_watches_a_run_sees_what_it_sees_of_a_vmapped_one(spec):
    (task,) = make_tasks(spec)
    mine, theirs = make_baseline("torch-adamw"), make_baseline("adamw")
    seen: list[list] = [[], []]
    for k, (run, baseline) in enumerate(((torch_rollout, mine), (rollout, theirs))):
        run(
            task,
            baseline,
            make_thetas(baseline, [{"lr": 0.01}]),
            [3],
            6,
            on_carry=lambda t, carry, draw, k=k: seen[k].append((t, carry, draw)),
        )
    for (t, a, first), (u, b, second) in zip(*seen, strict=True):
        assert t == u and bool(a.alive.all())
        torch.testing.assert_close(a.params, b.params, rtol=1e-3, atol=1e-4)
        assert a.buffers.keys() == b.buffers.keys()
        if first is not None:
            assert all(
                torch.equal(x, y)
                for x, y in zip((*first.train, first.noise), (*second.train, second.noise))
            )
    assert [t for t, _, _ in seen[0]] == list(range(7))


def test_a_diverged_run_stands_still_for_whoever_watches_it():
    (task,) = make_tasks(TINY)
    baseline, seen = make_baseline("torch-adamw"), []
    torch_rollout(
        task,
        baseline,
        make_thetas(baseline, [{"lr": 1e30}]),
        [3],
        6,
        on_carry=lambda *given: seen.append(given),
    )
    assert [t for t, _, _ in seen] == list(range(7)) and not bool(seen[-1][1].alive)
    assert all(bool(torch.isfinite(carry.params).all()) for _, carry, _ in seen)
