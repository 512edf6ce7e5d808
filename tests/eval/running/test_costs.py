"""What a step costs: a cell in a process of its own."""

from __future__ import annotations

import os

import pytest
import torch

from lo_framework.eval.baselines import make_baseline, make_thetas
from lo_framework.eval.running.cells import Failure, Found, arrays_of
from lo_framework.eval.running.costs import CostCell
from lo_framework.eval.running.pool import Plan, Recipe, Workshop, drive
from lo_framework.optimizees import make_tasks

WIDE = "mlp:hidden=512x512,batch=8"  # 300,000 parameters: more than the noise of a process


def cell_of(spec: str, task: str = f"{WIDE}/digits") -> CostCell:
    (theta,) = make_thetas(make_baseline(spec), [{"lr": 1e-3, "cosine": 0.0}])
    return CostCell(task=task, optimizer=spec, theta=arrays_of(theta), seed=0, steps=4)


def bytes_of(spec: str) -> float:
    (task,) = make_tasks([WIDE], ["digits"])
    told = []
    found = cell_of(spec).compute(task, make_baseline(spec), told.append)
    assert isinstance(found, Found) and found.data["seconds"] > 0 and sum(told) == 4
    return found.data["bytes"]


def test_a_run_takes_what_its_tensors_take() -> None:
    parameters = 4 * (64 * 512 + 512 * 512 + 512 * 10)
    # Parameters, gradients, two moments at least; a few copies of them at most.
    assert 3 * parameters < bytes_of("adamw") < 40 * parameters


def test_every_cell_has_a_process_of_its_own() -> None:
    cells = {name: [OwnProcess(name=name)] for name in "abc"}

    def plan(name: str) -> Plan[dict[str, int]]:
        (outcome,) = yield cells[name]
        assert not isinstance(outcome, Failure), outcome
        return outcome.data

    found = drive(
        {name: plan(name) for name in cells}, Workshop(recipe=Recipe(learned={})), alone=True
    )
    pids = [one["pid"] for one in found.values()]
    assert len({*pids, os.getpid()}) == 4


class OwnProcess:
    """A cell that says where it ran."""

    task, optimizer, work = "mlp:hidden=4/digits", "adamw", 1

    def __init__(self, name: str) -> None:
        self.name = name

    def compute(self, task: object, optimizer: object, on_step: object) -> Found:
        return Found(data={"pid": os.getpid(), "threads": torch.get_num_threads()})


@pytest.mark.parametrize("broken", ["task", "optimizer"])
def test_what_cannot_be_built_there_costs_its_cell_alone(broken: str) -> None:
    cell = cell_of("adamw", **({"task": "nothing/digits"} if broken == "task" else {}))
    if broken == "optimizer":
        cell = CostCell(task=cell.task, optimizer="nothing", theta=cell.theta, seed=0)

    def plan() -> Plan[object]:
        (outcome,) = yield [cell]
        return outcome

    found = drive({0: plan()}, Workshop(recipe=Recipe(learned={})), alone=True)
    assert isinstance(found[0], Failure) and "nothing" in found[0].reason
