"""One frame for all evaluations: objects made from a request and checked, then cells driven to a
result.

    evaluation = TransferEvaluation(request)        # raises UserError for whatever is wrong with it
    result = evaluation.run(progress=progress, store=store)
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any, Generic, TypeVar

import numpy as np

from lo_framework.errors import shown
from lo_framework.eval.baselines import Setting, TorchBaseline, make_baseline, make_thetas
from lo_framework.eval.running import protocol
from lo_framework.eval.running.cells import Failure, plan_cells
from lo_framework.eval.running.learned_files import Source, load_learned
from lo_framework.eval.running.plan import data_digest
from lo_framework.eval.running.pool import Plan, Recipe, Workshop, drive
from lo_framework.eval.running.progress import Progress
from lo_framework.eval.running.protocol import BY_KEY, METRICS, Metric
from lo_framework.eval.running.provenance import provenance
from lo_framework.eval.running.scaled import SUFFIX, Scaled
from lo_framework.eval.running.store import CellStore
from lo_framework.eval.running.tuning import Grid, Tuning, make_grid, tune
from lo_framework.eval.studies.request import Request
from lo_framework.eval.studies.result import Arm, Runs
from lo_framework.learned import LEARNED, LearnedOptimizer
from lo_framework.optimizees import make_tasks
from lo_framework.optimizees.registry import TASKS
from lo_framework.optimizees.task import Task
from lo_framework.ranks import others
from lo_framework.spec import UserError, parse_spec, split_specs

MOST = 100  # factors
Q = TypeVar("Q", bound=Request)
R = TypeVar("R")
X = TypeVar("X")
L = TypeVar("L")
Drive = Callable[[Mapping[Any, Plan[X]]], dict[Any, X]]

SPLITS = ("train", "test")  # what is reported

# Curves stay in memory until they are written as text: float32, then Python numbers.
BYTES_PER_STEP = 16
FASTEST = 1e7  # task-steps per second and process, more than any machine makes
LONGEST = 100 * 24 * 3600.0


class Evaluation(Generic[Q, R]):
    """One evaluation: a subclass says which optimizers it runs (`prepare`) and how (`compute`).

    Args:
        request: what is asked, as the command line has it.
        tasks, learned: objects in place of those that the request's texts name.

    Attributes:
        tasks: what is trained.
        labels: of everything that is compared, as a person gave them.
        optimizers: what cells run, by the names that cells have for them; the ``learned`` ones are
            among them, all others are specs of baselines.
        files: label -> the file or the name of a learned optimizer.
        grids: label -> the settings over which it is tuned.
        reported, chosen_on: seeds that are reported, and seeds that choose settings.
        work: about how many task-steps there are.
        metrics: what settings are chosen for; where it is one, its choice is reported for all.

    Raises:
        UserError: whatever can be known to be wrong before anything is computed.
    """

    labels: Sequence[str]
    work: int
    metrics: Sequence[Metric] = METRICS

    def __init__(
        self,
        request: Q,
        tasks: Sequence[Task] | None = None,
        learned: Source | Mapping[str, Source] | None = None,
    ) -> None:
        self.request = request
        self.reported = protocol.report_seeds(request.seeds, request.seed_offset)
        tuned = getattr(request, "tuning_seeds", None)
        self.chosen_on = () if tuned is None else protocol.tuning_seeds(tuned, request.seed_offset)
        source = getattr(request, "learned", {}) if learned is None else learned
        loaded = load_learned(source)
        self.files = {label: one.path for label, one in loaded.items() if one.path}
        self.learned = {label: one.optimizer for label, one in loaded.items()}
        self.grids: dict[str, Grid] = {}
        self.optimizers = dict(self.learned)
        self.scaled: dict[str, str] = {}  # label of a tuned form -> that of the learned optimizer
        self.prepare()
        self.tasks = tuple(self.make_tasks() if tasks is None else tasks)
        self.check()

    def prepare(self) -> None:
        """Set ``labels``, ``work`` per task, and whatever the request's texts mean; raises
        UserError.
        """
        raise NotImplementedError

    def make_tasks(self) -> Sequence[Task]:
        """Return what the request's texts name; raises UserError."""
        r = self.request
        return make_tasks(r.optimizees, r.datasets, r.data_dir, r.device)

    def compute(self, drive: Drive[Any]) -> R:
        """Run the cells, by one or several calls of ``drive``; returns the result."""
        raise NotImplementedError

    def with_costs(self, result: R, drive: Drive[Any]) -> R:
        """``result`` with what ``drive`` measures of each arm, in processes of their own."""
        return result

    def plan(self) -> dict[str, Any]:
        """Return JSON values that decide the numbers, beside cells, data and code."""
        return {}

    def identities(self) -> dict[str, Any]:
        """Return JSON values that decide a cell's numbers, by the names that the cell has."""
        made = self._made_of()
        tuned = {tuned: made[label] for tuned, label in self.scaled.items()}
        return {**made, **tuned, **{task.name: data_digest(task) for task in self.tasks}}

    def add_baselines(self, specs: Sequence[str], *, tuned: bool = True) -> None:
        """Run the baselines ``specs`` too, ``tuned`` over their grids; raises UserError."""
        for spec in specs:
            self.optimizers[spec] = make_baseline(spec)
            if tuned:
                self.grids[spec] = make_grid(spec, getattr(self.request, "grid_size", None))

    def add_scaled(self, factors_of_steps: str) -> list[str]:
        """Run learned optimizers with their step times one of these factors too, tuned as baselines
        are; "none": no factors. Returns the labels of both forms. Raises UserError.
        """
        none = factors_of_steps == "none"
        scales = [] if none else factors(factors_of_steps, "--step-scales")
        grid = Grid(settings=tuple({"scale": scale} for scale in scales), fixed=())
        self.scaled = {f"{label}{SUFFIX}": label for label in self.learned if scales}
        for tuned, label in self.scaled.items():
            self.optimizers[tuned], self.grids[tuned] = Scaled(self.learned[label]), grid
        forms = ([label, f"{label}{SUFFIX}"][: 1 + bool(scales)] for label in self.learned)
        return [label for each in forms for label in each]

    def each(self, labels: Iterable[L], plan: Callable[[str, L], X]) -> dict[tuple[str, L], X]:
        """Return ``plan(task, label)`` by its arguments, tasks outermost."""
        pairs = [(task.name, label) for task in self.tasks for label in labels]
        return {pair: plan(*pair) for pair in pairs}

    def own_arm(self, task: str, label: str) -> Plan[Arm]:
        """The arm of an optimizer at its own settings."""
        arm = Arm(task=task, optimizer=label, learned=label in self.learned, data=self._note(task))
        return self.run_settings(arm, label, [{}])

    def tuned_arm(self, task: str, spec: str, learned: bool = False) -> Plan[Arm]:
        """The arm of a baseline, or of a learned optimizer's tuned form: tuned, then run at every
        setting that is best by some metric.
        """
        arm = Arm(task=task, optimizer=spec, learned=learned, data=self._note(task))
        tuned = yield from self.tune(task, spec, self.metrics)
        if isinstance(tuned, Failure):
            return replace(arm, failure=f"tuning: {tuned.reason}")
        settings = tuned.chosen
        if len(self.metrics) == 1:
            settings = dict.fromkeys(BY_KEY, *settings.values())
        distinct = sorted(set(settings.values()))
        chosen = {key: distinct.index(i) for key, i in settings.items()}
        arm = replace(arm, chosen=chosen, tuned=tuned.records(), notes=tuned.notes)
        return (yield from self.run_settings(arm, spec, [tuned.settings[i] for i in distinct]))

    def best_arm(self, task: str, label: str) -> Plan[Arm]:
        """The arm of what is tuned, or of an optimizer as it is where there is nothing to tune."""
        if label in self.grids:
            return self.tuned_arm(task, label, learned=label in self.scaled)
        return self.own_arm(task, label)

    def _note(self, name: str) -> str:
        """What is to be known of a task's data."""
        return next((task.note for task in self.tasks if task.name == name), "")

    def tune(
        self, task: str, spec: str, metrics: Sequence[Metric] = METRICS
    ) -> Plan[Tuning | Failure]:
        """Choose the settings of what is tuned, for each of ``metrics``, on seeds of their own."""
        tuning = (self.grids[spec], self.chosen_on, self.request.steps)
        return tune(task, spec, self.optimizers[spec], *tuning, metrics=metrics)

    def run_settings(self, arm: Arm, name: str, settings: Sequence[Setting]) -> Plan[Arm]:
        """``arm`` with its runs at ``settings``, each in a cell of its own, so that costs compare.

        Args:
            name: of the optimizer, as cells have it.
        """
        optimizer = self.optimizers[name]
        cells = []
        for theta in make_thetas(optimizer, settings):
            cells += plan_cells(arm.task, name, [theta], self.reported, self.request.steps, SPLITS)
        outcomes = yield cells
        for outcome in outcomes:
            if isinstance(outcome, Failure):
                return replace(arm, chosen={}, failure=outcome.reason)
        runs = tuple(
            Runs(
                setting=setting,
                metrics={name: x[0] for name, x in (got.metrics | got.extra).items()},
                curves=got.curves[0].astype(np.float32),
                diverged=got.diverged[0],
                seconds_per_step=got.seconds_per_step,
            )
            for setting, got in zip(settings, outcomes, strict=True)
        )
        chosen = arm.chosen or {metric.key: 0 for metric in METRICS}
        return replace(
            arm,
            runs=runs,
            chosen={key: i for key, i in chosen.items() if key in runs[0].metrics},
            gradients_per_step=gradients_per_step(optimizer),
            parameters=outcomes[-1].parameters,
            state_floats=outcomes[-1].state_floats,
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The tasks' names."""
        return tuple(task.name for task in self.tasks)

    @property
    def tuning_runs(self) -> int:
        """How many runs tuning takes per task, if no grid is extended."""
        sizes = (len(grid.settings) for grid in self.grids.values() if grid.has_choice)
        return sum(sizes) * len(self.chosen_on)

    def run(
        self,
        *,
        progress: Progress | None = None,
        store: CellStore | None = None,
        command: Sequence[str] = (),
    ) -> R:
        """Compute everything that ``store`` does not have; ``command`` is for the record."""
        workers = self.request.workers
        tasks = {task.name: task for task in self.tasks}
        costs = getattr(self.request, "costs", False)
        recipe = self._recipe() if workers > 1 or others() or costs else None
        workshop = Workshop(tasks=tasks, optimizers=dict(self.optimizers), recipe=recipe)
        progress = progress or Progress(mode="none")
        progress.begin(len(tasks) * self.work)
        driven = partial(drive, workshop=workshop, workers=workers, progress=progress, store=store)
        result: Any = self.compute(driven)
        if costs:
            result = self.with_costs(result, partial(driven, alone=True))
        return replace(result, provenance=provenance(command))

    def check(self) -> None:
        """Raises UserError: nothing to do, something given twice, more than the machine can do."""
        names = [task.name for task in self.tasks]
        if not names or not self.labels:
            raise UserError("nothing to evaluate: expected at least one task and one optimizer")
        for what, given in (("task", names), ("optimizer", list(self.labels))):
            if twice := {name for name in given if given.count(name) > 1}:
                raise UserError(f"{what} {sorted(twice)[0]!r} is given twice")
        work = len(names) * self.work
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        seconds = work / FASTEST / self.request.workers
        if work * BYTES_PER_STEP > memory or seconds > LONGEST:
            raise UserError(
                f"about {work:.2g} steps in all would keep {work * BYTES_PER_STEP / 2**30:.3g} GiB "
                f"(this machine has {memory / 2**30:.3g}) and take {seconds / 86400:.2g} days at "
                "least; ask for fewer steps, seeds, settings, tasks or optimizers"
            )

    def _recipe(self) -> Recipe:
        """Say how workers build tasks and optimizers; refused here rather than in every cell."""
        odd = [
            f"tasks by spec, and {task.name!r} is none"
            for task in self.tasks
            if parse_spec(task.name.partition("/")[0])[0] not in TASKS
        ]
        for label, optimizer in self.learned.items():
            if optimizer.kind not in LEARNED:
                odd.append(f"registered kinds, and {label!r} is of none")
        if odd:
            raise UserError(f"more than one worker needs {odd[0]}; use workers=1")
        return Recipe(
            learned=self._made_of(),
            data_dir=self.request.data_dir,
            device=str(self.tasks[0].device),
            plugins=self.request.plugins,
        )

    def _made_of(self) -> dict[str, tuple[str, dict[str, Any]]]:
        """Kind and config of every learned optimizer."""
        return {label: (o.kind, asdict(o.config)) for label, o in self.learned.items()}


def gradients_per_step(optimizer: LearnedOptimizer) -> float:
    """Gradient evaluations per update: one, or what its explicit regularizer takes (SAM: two)."""
    if isinstance(optimizer, TorchBaseline):
        return optimizer.gradients
    explicit = optimizer.explicit(optimizer.theta())
    return 1.0 if explicit is None else explicit.cost.total


def factors(text: str, option: str = "--scaled") -> list[float]:
    """``"0.5,1.5"`` to numbers. Raises UserError."""
    try:
        found = [float(word) for word in text.split(",")] if text else []
    except ValueError:
        found = [math.nan]
    if len(found) > MOST or not all(0 < x < math.inf for x in found):
        raise UserError(
            f"{option} {shown(text)}: expected at most {MOST} positive factors, as 0.5,0.75,1.25"
        )
    return found


def specs_of(text: str) -> list[str]:
    """The specs of a list; none for ``"none"`` or an empty text. Raises UserError."""
    return [] if text in ("none", "") else split_specs(text)
