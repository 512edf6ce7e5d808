"""Tuned AdamW's stored results: when they count, and when they do not."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from lo_framework.eval.running.tuning import make_grid
from lo_framework.eval.score import adamw
from lo_framework.eval.score.adamw import Stored, origin, place, usable
from lo_framework.eval.score.measures import Scored
from lo_framework.eval.score.suite import Problem, task_of
from lo_framework.spec import UserError

PROBLEM = Problem(name="a", axis="width", optimizee="mlp:hidden=8", steps=20)
GRID = make_grid("adamw")
SEEDS = (20000, 20001, 20002)


def made(problem=PROBLEM, grid=GRID, change=lambda task: None):
    task = task_of(problem, None, "cpu")
    change(task)
    return origin(problem, task, grid)


def stored():
    setting = {"lr": 0.01, "cosine": 0.0}
    keys = ("last_loss", "test_loss", "first_loss", "peak_loss", "steps")
    one = Scored(
        task="a",
        optimizer="adamw",
        learned=False,
        settings={"last_loss": setting, "test_loss": setting},
        metrics={key: np.array([1.0, 2.0, 4.0]) for key in keys},
        diverged=np.zeros(3, dtype=bool),
    )
    return Stored(results=(one,), origins={"a": made()}, seeds=SEEDS)


def test_results_come_back_as_they_were_stored(tmp_path):
    suite = tmp_path / "mine.json"
    path = adamw.write(suite, stored())
    assert path == place(suite) == tmp_path / "mine.adamw.json"
    again = adamw.read(suite)
    assert again.origins == stored().origins and again.seeds == SEEDS
    known = usable(again, {"a": made()}, SEEDS[:2], suite)["a"]
    assert known.metrics["last_loss"].tolist() == [1.0, 2.0]
    assert adamw.read(tmp_path / "other.json") == Stored()


def test_the_last_bits_of_a_draw_do_not_matter():
    def nudge(task):
        task.data = {split: (rows[0] * (1 + 1e-6), *rows[1:]) for split, rows in task.data.items()}

    assert made().differs(made(change=nudge)) == ""


def brighter(task):
    task.data = {split: (rows[0] * 1.01, *rows[1:]) for split, rows in task.data.items()}


def other_start(task):
    init = task.init
    task.init = lambda generator: init(generator.manual_seed(1))


@pytest.mark.parametrize(
    "now, why",
    [
        (dict(problem=replace(PROBLEM, steps=21)), "its text"),
        (dict(problem=replace(PROBLEM, optimizee="mlp:hidden=8,batch=8")), "its text"),
        (dict(grid=make_grid("adamw", 3)), "tuning"),
        (dict(change=brighter), "data"),
        (dict(change=other_start), "start"),
    ],
)
def test_results_of_another_problem_do_not_count(tmp_path, now, why):
    with pytest.raises(UserError, match=rf"a \(.*{why}.*--tune --suite") as caught:
        usable(stored(), {"a": made(**now)}, SEEDS, tmp_path / "mine.json")
    assert "\n" not in str(caught.value)


def test_missing_results_and_seeds_are_named(tmp_path):
    suite = tmp_path / "mine.json"
    with pytest.raises(UserError, match=r"b \(not there\).*eval score --tune"):
        usable(stored(), {"b": made()}, SEEDS, suite)
    with pytest.raises(UserError, match=r"seeds 20000 to 20002.*--seeds 4"):
        usable(stored(), {"a": made()}, (*SEEDS, 20003), suite)


def test_a_damaged_file_is_refused(tmp_path):
    suite = tmp_path / "mine.json"
    path = adamw.write(suite, stored())
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, "seeds": [20000]}))
    with pytest.raises(UserError, match="is damaged"):
        adamw.read(suite)
    path.write_text("[]")
    with pytest.raises(UserError, match="not a result of `eval score --tune`"):
        adamw.read(suite)


def test_results_can_be_stored_or_it_is_said_before(tmp_path):
    suite = tmp_path / "mine.json"
    adamw.require_place(suite, stored(), SEEDS, False)
    adamw.require_place(suite, stored(), SEEDS[:2], True)
    with pytest.raises(UserError, match="tune all problems, or these on the same seeds"):
        adamw.require_place(suite, stored(), SEEDS[:2], False)
    with pytest.raises(UserError, match="cannot be written"):
        adamw.require_place(tmp_path / "nowhere" / "mine.json", stored(), SEEDS, True)
