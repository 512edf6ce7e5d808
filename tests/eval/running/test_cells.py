"""Cells: what they measure, how work is cut into them; one cell's failure stays its own."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch

from lo_framework.eval.baselines import make_baseline, make_thetas
from lo_framework.eval.running.cells import Cell, Failure, plan_cells
from lo_framework.eval.running.pool import Recipe, Workshop, drive
from lo_framework.eval.running.progress import Progress
from lo_framework.inner.rollout import rollout
from lo_framework.optimizees import make_tasks
from lo_framework.spec import UserError
from tests.eval.cells import run_cell

TINY = "mlp:hidden=4,batch=8"


def task(spec=TINY):
    return make_tasks(spec)[0]


def cell(lrs=(0.01,), seeds=(1, 2), steps=5, name="adamw", spec=TINY, splits=("train", "test")):
    optimizer = make_baseline(name)
    thetas = make_thetas(optimizer, [{"lr": lr} for lr in lrs])
    cells = plan_cells(task(spec).name, name, thetas, seeds, steps, splits)
    assert len(cells) == 1
    return cells[0], task(spec), optimizer


def test_metrics_are_those_of_the_rollout():
    one, t, optimizer = cell(lrs=(0.01, 0.1))
    got = run_cell(one, t, optimizer)
    thetas = make_thetas(optimizer, [{"lr": 0.01}, {"lr": 0.1}])
    expected = rollout(t, optimizer, thetas, [1, 2], 5, splits=("train", "test"))
    np.testing.assert_array_equal(got.curves, expected.train.numpy())
    np.testing.assert_allclose(got.metrics["mean_loss"], expected.train.mean(-1), rtol=1e-6)
    for key, name in [
        ("final_loss", "train.loss"),
        ("test_loss", "test.loss"),
        ("test_accuracy", "test.accuracy"),
    ]:
        np.testing.assert_allclose(got.metrics[key], expected.final[name], rtol=1e-6, err_msg=key)
    assert not got.diverged.any() and got.parameters == 64 * 4 + 4 + 4 * 10 + 10
    assert got.state_floats == pytest.approx(2, abs=0.01) and got.seconds_per_step > 0


def test_a_diverged_run_has_infinite_losses_and_no_accuracy():
    got = run_cell(*cell(lrs=(0.1, 1e38), name="sgdm", spec="mlp-relu:hidden=4,batch=8"))
    assert got.diverged.tolist() == [[False, False], [True, True]]
    assert (
        np.isinf(got.metrics["mean_loss"][1]).all() and np.isinf(got.metrics["final_loss"][1]).all()
    )
    assert (
        np.isnan(got.metrics["test_accuracy"][1]).all()
        and np.isfinite(got.metrics["test_accuracy"][0]).all()
    )


def test_the_optimizer_that_was_given_is_not_touched():
    one, t, optimizer = cell()
    before = {name: x.clone() for name, x in optimizer.theta().items()}
    run_cell(one, t, optimizer)
    assert all(torch.equal(x, before[name]) for name, x in optimizer.theta().items())


def test_steps_are_told():
    told = []
    one, t, optimizer = cell(lrs=(0.01, 0.02), seeds=(1, 2, 3), steps=4)
    run_cell(one, t, optimizer, told.append)
    assert sum(told) == one.work == 2 * 3 * 4


@pytest.mark.parametrize(
    ("thetas", "seeds", "sizes"),
    [(16, 3, [8, 8]), (1, 40, [1]), (7, 16, [1, 2, 2, 2]), (3, 32, [1] * 3)],
)
def test_cells_hold_whole_settings_and_fill_a_vmap(thetas, seeds, sizes):
    cells = plan_cells(
        "t",
        "o",
        [{"x": torch.tensor(float(i))} for i in range(thetas)],
        range(seeds),
        10,
        ("train",),
    )
    assert [len(c.thetas) for c in cells] == sizes
    assert [float(theta["x"]) for c in cells for theta in c.thetas] == list(range(thetas))


def plans(cells):
    def plan(one):
        (outcome,) = yield [one]
        return outcome

    return {name: plan(one) for name, one in cells.items()}


@pytest.fixture
def plugin(tmp_path_factory):
    """A plugin with a task that raises and one that kills its process."""
    from lo_framework.optimizees import registry
    from lo_framework.plugin import load_plugin

    path = tmp_path_factory.mktemp("plugin") / "bad_tasks.py"
    path.write_text(
        """
import os
from lo_framework.optimizees import register_task
from lo_framework.optimizees.analytic import Quadratic, QuadraticConfig

class Broken(Quadratic):
    def loss(self, *arguments):
        raise RuntimeError("no such kernel\\nand a second line")

class Deadly(Quadratic):
    def loss(self, *arguments):
        os._exit(9)

@register_task("broken", config=QuadraticConfig, uses_dataset=False)
def build_broken(config):
    return Broken(config)

@register_task("deadly", config=QuadraticConfig, uses_dataset=False)
def build_deadly(config):
    return Deadly(config)
"""
    )
    load_plugin(str(path))
    yield str(path)
    for name in ("broken", "deadly"):
        del registry.TASKS[name]


def test_a_failed_cell_is_a_line_and_the_others_live(plugin):
    cells = {name: cell(spec=name, steps=2)[0] for name in ("broken", "quadratic")}
    tasks = {name: task(name) for name in cells}
    got = drive(plans(cells), Workshop(tasks=tasks, optimizers={"adamw": make_baseline("adamw")}))
    assert got["broken"] == Failure(reason="RuntimeError: no such kernel (bad_tasks.py, line 8)")
    assert got["quadratic"].metrics["final_loss"].shape == (1, 2)


def test_a_process_that_dies_costs_its_cell_and_processes_give_the_same_bits(plugin):
    names = ("deadly", "broken", "quadratic", TINY)
    cells = {name: cell(spec=name, steps=3)[0] for name in names}
    recipe = Recipe(learned={}, plugins=(plugin,))
    progress = Progress(mode="none")
    threads = torch.get_num_threads()
    got = drive(plans(cells), Workshop(recipe=recipe), workers=2, progress=progress)
    assert list(got) == list(names) and torch.get_num_threads() == threads
    assert "its process died (exit code 9" in got["deadly"].reason
    assert "no such kernel" in got["broken"].reason
    for name in ("quadratic", TINY):
        here = run_cell(*cell(spec=name, steps=3))
        np.testing.assert_array_equal(got[name].curves, here.curves)
        assert got[name].metrics.keys() == here.metrics.keys()
        for key, values in here.metrics.items():
            np.testing.assert_array_equal(got[name].metrics[key], values)
    assert progress.done == 2 * 2 * 3 and progress.expected == 4 * 2 * 3


def test_workers_need_a_recipe():
    with pytest.raises(UserError, match="workers=1"):
        drive(plans({"a": cell()[0]}), Workshop(), workers=2)


def test_plans_may_ask_again():
    def plan():
        (first,) = yield [cell(steps=1)[0]]
        more = yield [cell(steps=2)[0], cell(steps=3)[0]]
        return [x.curves.shape[-1] for x in (first, *more)]

    workshop = Workshop(tasks={task().name: task()}, optimizers={"adamw": make_baseline("adamw")})
    assert drive({"a": plan(), "b": plan()}, workshop) == {"a": [1, 2, 3], "b": [1, 2, 3]}


def test_progress_in_plain_lines(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("lo_framework.eval.running.progress.time.monotonic", lambda: now[0])
    stream = io.StringIO()
    progress = Progress(title="transfer", stream=stream)  # not a terminal: plain lines
    progress.begin(100)
    for _ in range(5):
        now[0] += 4.0
        progress.advance(10)
    progress.close()
    assert stream.getvalue() == "transfer: 30%, 30 of 100 steps, 2/s, about 28 s left\n"
    progress.expect(400)
    assert progress.total == 400


def test_progress_as_a_forced_bar():
    stream = io.StringIO()
    progress = Progress(mode="bar", title="transfer", stream=stream)
    progress.begin(10)
    progress.expect(20)
    progress.advance(20)
    progress.close()
    assert "transfer" in stream.getvalue() and progress.bar.total == 20


def test_one_step_has_no_measured_time():
    one, t, optimizer = cell(steps=1)
    assert isinstance(one, Cell) and math.isnan(run_cell(one, t, optimizer).seconds_per_step)


@pytest.mark.parametrize("error", [SystemExit(0), MemoryError(), RuntimeError("x")])
def test_an_error_of_a_cell_is_a_failure(error):
    class Bad:
        task = optimizer = "none"

        def compute(self, *_):
            raise error

    workshop = Workshop(tasks={"none": task()}, optimizers={"none": make_baseline("adamw")})
    assert type(error).__name__ in workshop.compute(Bad(), lambda n: None).reason


def test_a_broken_pipe_of_the_progress_is_no_failure_of_a_cell():
    """It ends the program; good results are not replaced by failures."""
    one, t, optimizer = cell()

    def unread(n):
        raise BrokenPipeError

    workshop = Workshop(tasks={one.task: t}, optimizers={one.optimizer: optimizer})
    with pytest.raises(BrokenPipeError):
        workshop.compute(one, unread)
