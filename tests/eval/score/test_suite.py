"""Suite files: what they may hold, and the shipped one."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from lo_framework.eval.score.suite import SHIPPED, read_suite, task_of
from lo_framework.spec import UserError

GOOD = {"name": "a", "axis": "width", "optimizee": "mlp:hidden=8", "steps": 20}


def suite(tmp_path, *problems, **rest):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"problems": problems, **rest}))
    return path


def test_a_suite_is_read(tmp_path):
    path = suite(tmp_path, GOOD, {**GOOD, "name": "b"}, about="mine")
    first, second = read_suite(path)
    assert (first.name, first.dataset, first.steps, second.name) == ("a", "digits", 20, "b")
    assert read_suite(path, ["b"]) == (second,)
    assert task_of(first, None, "cpu").name == "mlp:hidden=8/digits"


@pytest.mark.parametrize(
    "problems, words",
    [
        ([], "at least one problem"),
        ([GOOD, GOOD], 'problem "a": expected a name of its own'),
        ([{**GOOD, "axis": " "}], "an axis"),
        ([{**GOOD, "step": 3}], 'unknown field "step" (did you mean "steps"?)'),
        ([{**GOOD, "steps": 0}], "at least 1"),
        ([{k: v for k, v in GOOD.items() if k != "optimizee"}], 'field "optimizee" is missing'),
    ],
)
def test_bad_suites_are_refused(tmp_path, problems, words):
    with pytest.raises(UserError, match=r"^--suite ") as caught:
        read_suite(suite(tmp_path, *problems))
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"optimizee": "mpl"}, 'unknown optimizee "mpl" (did you mean "mlp"?)'),
        ({"dataset": "digit"}, 'unknown data set "digit" (did you mean "digits"?)'),
        ({"optimizee": "mlp:hiden=3"}, 'did you mean "hidden"?'),
        ({"optimizee": "mlp,cnn"}, "expected one optimizee"),
    ],
)
def test_a_problem_that_names_nothing_known_is_refused(tmp_path, changed, words):
    (problem,) = read_suite(suite(tmp_path, {**GOOD, **changed}))
    with pytest.raises(UserError, match='^problem "a": ') as caught:
        task_of(problem, None, "cpu")
    assert words in str(caught.value)


def test_names_are_looked_up(tmp_path):
    with pytest.raises(UserError, match='unknown problem "wide-51" .*mean "wide-512"'):
        read_suite(suite(tmp_path, {**GOOD, "name": "wide-512"}), ["wide-51"])
    with pytest.raises(UserError, match="No such file.*did you mean .*mine.json"):
        read_suite(tmp_path / "nine.json")


def test_the_shipped_suite_has_six_axes_and_needs_no_download():
    problems = read_suite(SHIPPED)
    assert len(problems) >= 16 and len({problem.axis for problem in problems}) == 6
    for problem in problems:
        name = task_of(problem, None, "cpu").name
        optimizee, _, dataset = name.partition("/")  # as workers make it again
        again = replace(problem, optimizee=optimizee, dataset=dataset or "digits")
        assert task_of(again, None, "cpu").name == name
