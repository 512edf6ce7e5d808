"""A killed evaluation continues from its finished cells, with the numbers of one that nobody
disturbed.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lo_framework.eval.cli import main
from lo_framework.eval.report.sharpness.page import SharpnessReport
from lo_framework.eval.running.cells import Found, Measured
from lo_framework.eval.running.store import PLAN, CellStore
from lo_framework.eval.sharpness.cells import TrainCell
from lo_framework.eval.sharpness.settings import Settings
from lo_framework.spec import UserError
from tests.eval.sharpness.evaluations import SMALL, numbers, optimizer_file, tiny_level

# Kills itself just before the file of its 7th finished cell takes its place (the plan's file is the
# first of all).
KILLED = """
import itertools, json, os, signal, sys
from lo_framework.eval.cli import main
from tests.eval.sharpness.evaluations import tiny_level

count, replace = itertools.count(1), os.replace

def killing(*paths):
    if next(count) == 8:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(*paths)

os.replace = killing
with tiny_level():
    main(json.loads(sys.argv[1]))
"""


@pytest.fixture
def command(tmp_path):
    file = optimizer_file(tmp_path)
    return lambda out, *more: [
        "sharpness",
        "--learned",
        str(file),
        *SMALL,
        "--out",
        str(tmp_path / out),
        *more,
    ]


def test_a_killed_run_resumes_to_the_same_numbers(command, tmp_path, capsys, monkeypatch):
    # drawing takes longer than the rest
    monkeypatch.setattr(SharpnessReport, "html", lambda report: "")
    root = Path(__file__).resolve().parents[3]
    words = [sys.executable, "-c", KILLED, json.dumps(command("out"))]
    ended = subprocess.run(words, cwd=root, capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    left = {path.name for path in (tmp_path / "out" / "cells").glob("*.json")}
    assert len(left) == 7 and PLAN in left and not (tmp_path / "out" / "sharpness.json").exists()
    assert list((tmp_path / "out" / "cells").glob("*.tmp"))
    with tiny_level():
        assert main(command("out")) == 0
        assert "6 finished cells of an earlier run were used again" in capsys.readouterr().err
        assert not list((tmp_path / "out" / "cells").glob("*.tmp"))
        assert main(command("undisturbed")) == 0
    got = [
        numbers((tmp_path / out / "sharpness.json").read_text()) for out in ("out", "undisturbed")
    ]
    assert got[0] == got[1]
    capsys.readouterr()
    assert main(command("out", "--seeds", "3")) == 2
    shown = capsys.readouterr().err
    assert "with seeds 2, and this one has seeds 3; give another --out, or --fresh" in shown
    assert len(shown.splitlines()) == 1


def cell(**changes):
    theta = {"log_lr": np.array(0.5, dtype=np.float32)}
    options = dict(task="t", optimizer="o", theta=theta, seed=1, settings=Settings(steps=3))
    return TrainCell(**{**options, **changes})


def test_cells_are_told_apart_by_everything_in_them(tmp_path):
    store = CellStore(tmp_path, {"steps": 3})
    store.put(cell(), Found(data={"x": [1.5, None, "words"]}))
    assert store.get(cell()) == Found(data={"x": [1.5, None, "words"]}) and store.reused == 1
    others = [
        dict(seed=2),
        dict(optimizer="p"),
        dict(theta={"log_lr": np.array(0.6, dtype=np.float32)}),
    ]
    for change in [*others, dict(settings=Settings(steps=3, radii=(0.1,)))]:
        assert store.get(cell(**change)) is None


def test_tuning_results_keep_their_infinities(tmp_path):
    metrics = {
        "final_loss": np.array([[0.1, np.inf]]),
        "valid_accuracy": np.array([[np.nan, 1 / 3]]),
    }
    kwargs = dict(seconds_per_step=float("nan"), parameters=7, state_floats=2.5)
    before = Measured(
        curves=np.zeros((1, 2, 4)), metrics=metrics, diverged=np.array([[False, True]]), **kwargs
    )
    store = CellStore(tmp_path, {})
    store.put(cell(), before)
    after = store.get(cell())
    for name, values in metrics.items():
        np.testing.assert_array_equal(after.metrics[name], values)
    assert after.diverged.tolist() == [[False, True]] and (
        after.parameters,
        after.state_floats,
    ) == (7, 2.5)
    json.loads(
        next(path for path in tmp_path.glob("*.json") if path.name != PLAN).read_text(),
        parse_constant=pytest.fail,
    )


def test_a_damaged_cell_counts_as_none_and_a_damaged_plan_begins_again(tmp_path):
    store = CellStore(tmp_path, {"steps": 3})
    store.put(cell(), Found(data={}))
    (path,) = (path for path in tmp_path.glob("*.json") if path.name != PLAN)
    path.write_text(path.read_text()[:9])
    assert store.get(cell()) is None and store.reused == 0
    (tmp_path / PLAN).write_text("{")
    CellStore(tmp_path, {"steps": 4})
    assert [path.name for path in tmp_path.glob("*.json")] == [PLAN]


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "3",
        '"words"',
        "[" * 100_000,
        '{"kind": "found", "data": ' + "[" * 500 + "]" * 500 + "}",
        '{"kind": "found", "data": [1]}',
        '{"kind": "found"}',
        '{"kind": "measured"}',
        '{"kind": "measured", "metrics": [1], "extra": {}, "diverged": [[true]], "curves": []}',
        '{"kind": "measured", "metrics": {"x": [[1], [1, 2]]}, "extra": {}, "diverged": []}',
    ],
)
def test_json_that_is_no_cell_is_computed_again(text, tmp_path):
    store = CellStore(tmp_path, {"steps": 3})
    store.put(cell(), Found(data={}))
    (path,) = (path for path in tmp_path.glob("*.json") if path.name != PLAN)
    path.write_text(text)
    assert store.get(cell()) is None and store.reused == 0


def test_other_plans_are_refused_by_what_differs_or_forgotten(tmp_path):
    plan = {"steps": 3, "learned": {"mlp": "aa"}, "radii": ["0.1"]}
    CellStore(tmp_path, plan).put(cell(), Found(data={}))
    assert CellStore(tmp_path, dict(plan)).get(cell()) is not None
    cases = {
        "with steps 3, and this one has steps 4": {**plan, "steps": 4},
        "with learned mlp aa, and this one has learned mlp bb": {**plan, "learned": {"mlp": "bb"}},
        "with radii 0.1, and this one has radii 0.1,1": {**plan, "radii": ["0.1", "1"]},
    }
    for message, other in cases.items():
        with pytest.raises(UserError, match=message):
            CellStore(tmp_path, other)
    assert CellStore(tmp_path, {**plan, "steps": 4}, fresh=True).get(cell()) is None
