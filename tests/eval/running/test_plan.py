"""The plan of finished cells covers whatever code can change a cell, new files included."""

from __future__ import annotations

import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from lo_framework import namespace
from lo_framework.eval.baselines import make_baseline
from lo_framework.eval.running import plan
from lo_framework.eval.running.cells import plan_cells
from lo_framework.eval.running.store import CellStore
from lo_framework.optimizees import make_tasks
from tests.eval.cells import run_cell

NEW = """
from lo_framework.eval.baselines.hand_designed import SGDM
from lo_framework.eval.baselines.registry import lr_grid, register_baseline

register_baseline("new", lr_grid([0.1]))(type("New", (SGDM,), {"kind": "new"}))
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A copy of the package, as a wheel installs it: folders in place of the checkout's links."""
    copy = tmp_path / "lo_framework"
    there = Path(namespace.__file__).parent
    shutil.copytree(there, copy, ignore=shutil.ignore_patterns("__pycache__", "*.json"))
    monkeypatch.setattr(plan.namespace, "__file__", str(copy / "namespace.py"))
    return copy


def test_the_installed_package_and_the_checkout_have_one_plan(home, monkeypatch):
    installed = plan.plan_of("cpu", ())
    monkeypatch.undo()
    assert plan.plan_of("cpu", ()) == installed


@pytest.mark.parametrize(
    "name",
    [
        "eval/baselines/new.py",
        "eval/running/cells.py",
        "eval/sharpness/surface.py",
        "optimizees/models/new.py",
        "regularizers/sam.py",
        "inner/step.py",
        "new_room/new.py",
        "new.py",
    ],
)
def test_code_that_can_change_a_cell_changes_the_plan(home, name):
    before = plan.plan_of("cpu", ())
    path = home / name
    path.parent.mkdir(exist_ok=True)
    path.write_text((path.read_text() if path.exists() else NEW) + "\n")
    after = plan.plan_of("cpu", ())
    assert [key for key in before if before[key] != after[key]] == ["code"]


@pytest.mark.parametrize(
    "name", ["eval/report/new.py", "eval/cli.py", "eval/commands/new.py", "meta_train/new.py"]
)
def test_code_that_draws_or_reads_arguments_does_not(home, name):
    before = plan.plan_of("cpu", ())
    with (home / name).open("a") as file:
        file.write("\n")
    assert plan.plan_of("cpu", ()) == before


def test_plugins_count_files_modules_and_packages(tmp_path, monkeypatch):
    (tmp_path / "tasks.py").write_text("A = 1\n")
    package = tmp_path / "plugin_of_plan_test"
    package.mkdir()
    (package / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    names = [str(tmp_path / "tasks.py"), "plugin_of_plan_test"]
    plans = [plan.plan_of("cpu", names)["plugin"]]
    for path in (tmp_path / "tasks.py", package / "part.py"):
        path.write_text("A = 2\n")
        plans.append(plan.plan_of("cpu", names)["plugin"])
    assert set(plans[0]) >= set(names)
    assert all(a != b for a, b in pairwise(plans))


def test_cells_are_of_the_data_and_the_config_they_came_from(tmp_path):
    """Names alone would let one task's numbers pass for those of another of the same name."""
    (task,), optimizer = make_tasks("quadratic"), make_baseline("sgdm")
    (cell,) = plan_cells(task.name, "sgdm", [optimizer.theta()], (1,), 2, ("train",))
    store = CellStore(tmp_path, {}, identities={"quadratic": "data a", "sgdm": "config a"})
    store.put(cell, run_cell(cell, task, optimizer))
    assert store.get(cell) is not None
    for changed in ({"quadratic": "data b"}, {"sgdm": "config b"}):
        other = CellStore(tmp_path, {}, identities={**store.identities, **changed})
        assert other.get(cell) is None
    assert plan.data_digest(task) == plan.data_digest(make_tasks("quadratic")[0])
    assert plan.data_digest(task) != plan.data_digest(make_tasks("mlp")[0])


def test_the_plan_is_found_from_any_folder(tmp_path):
    script = "from lo_framework.eval.running.plan import plan_of; print(plan_of('cpu', ())['code'])"
    words = [sys.executable, "-c", script]
    there = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert there.stdout.strip() == plan.plan_of("cpu", ())["code"], there.stderr
