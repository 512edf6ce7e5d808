"""Suites of problems to judge optimizers on: the shipped one, and a person's own file.

{"about": "...", "problems": [
  {"name": "wide", "axis": "width", "optimizee": "mlp-relu:hidden=512x512", "steps": 200}, ...]}
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from lo_framework.errors import choose, nearest, shown
from lo_framework.files.atomic import reason
from lo_framework.optimizees import make_tasks
from lo_framework.optimizees.task import Task
from lo_framework.schema import Range, read_json
from lo_framework.spec import UserError

SHIPPED = Path(__file__).with_name("suite.json")


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One problem of a suite.

    Attributes:
        name: what reports call it.
        axis: in what it is unlike the problems that optimizers are meta-trained on.
        optimizee, dataset: specs, the batch size among their options.
        steps: updates of one run.
    """

    name: str
    axis: str
    optimizee: str
    dataset: str = "digits"
    steps: Annotated[int, Range(low=1, high=10**7)] = 200


@dataclass(frozen=True, kw_only=True)
class Suite:
    """What a suite file holds: problems, and a word about them."""

    problems: tuple[Problem, ...]
    about: str = ""


def read_suite(path: Path, names: Sequence[str] = ()) -> tuple[Problem, ...]:
    """The problems in the file at ``path``, or those called ``names`` in the order of the file.

    Raises:
        UserError: no such file or no suite, a name given twice, or one that it does not have.
    """
    owner = f"--suite {str(path)!r}"
    try:
        text = path.read_bytes()
    except OSError as error:
        alike = [str(other) for other in path.parent.glob("*.json")] if not path.exists() else []
        raise UserError(f"{owner}: {reason(error)}{nearest(str(path), alike)}") from None
    problems: tuple[Problem, ...] = read_json(text, Suite, owner).problems
    every = [problem.name for problem in problems]
    if not problems:
        raise UserError(f"{owner}: expected at least one problem")
    for problem in problems:
        if every.count(problem.name) > 1 or not (problem.name.strip() and problem.axis.strip()):
            twice = "a name of its own and an axis"
            raise UserError(f"{owner}: problem {shown(problem.name)}: expected {twice}")
    wanted = {choose("problem", name, every) for name in names} or set(every)
    return tuple(problem for problem in problems if problem.name in wanted)


def task_of(problem: Problem, data_dir: str | None, device: str) -> Task:
    """The task that a problem names.

    Raises:
        UserError: an unknown optimizee, data set or option (naming the nearest), or several tasks.
    """
    try:
        tasks = make_tasks([problem.optimizee], [problem.dataset], data_dir, device)
        if len(tasks) != 1:
            raise UserError("expected one optimizee and one data set")
    except UserError as error:
        raise UserError(f"problem {shown(problem.name)}: {error}") from None
    return tasks[0]
