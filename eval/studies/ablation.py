"""An ablation: every cell of every panel of a study, on every task, and reference numbers beside
them.

study = find_study("torch-metaoptimize", None, [])
result = ablate(study, tasks, references=("adamw:cosine=0",), steps=500, seeds=5)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from lo_framework.eval.baselines import make_baseline, setting_label
from lo_framework.eval.baselines.registry import options_of
from lo_framework.eval.running import protocol
from lo_framework.eval.running.cells import Failure, by_setting, plan_cells
from lo_framework.eval.running.envelope import Envelope
from lo_framework.eval.running.pool import Arm as Plan
from lo_framework.eval.running.pool import Store, Workshop, drive
from lo_framework.eval.running.progress import Progress
from lo_framework.eval.running.provenance import provenance
from lo_framework.eval.running.tuning import Grid, make_grid
from lo_framework.eval.statistics import Array
from lo_framework.eval.studies.panels import Axis, Mark, Panel, Study
from lo_framework.eval.studies.result import _array, _plain
from lo_framework.eval.studies.transfer import SPLITS, baseline_arm, check, make_recipe
from lo_framework.learned.base import LearnedOptimizer
from lo_framework.protocols import Task

FILE = Envelope("ablation", "ablation.json", version=1)
CHOSEN_BY = "final_loss"  # a reference is shown at its best setting for this


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One optimizer on one task over S seeds. ``failure``: why there are no numbers.

    Attributes:
        metrics: name -> ``[S]``; losses of diverged runs are infinite, their accuracies nan. Counts
            too.
        setting: what tuning chose, of a reference.
    """

    task: str
    spec: str
    metrics: dict[str, Array] = field(default_factory=dict)
    diverged: Array = field(default_factory=lambda: np.zeros(0, dtype=bool))
    setting: str = ""
    failure: str = ""


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """A whole ablation: ``entries`` by (task, spec), each spec once however many panels hold it."""

    tasks: tuple[str, ...]
    study: Study
    entries: tuple[Entry, ...]
    references: tuple[Entry, ...]
    steps: int
    seeds: tuple[int, ...]
    tuning_seeds: tuple[int, ...]
    provenance: dict[str, Any] = field(default_factory=dict)

    def entry(self, task: str, panel: Panel, row: str, column: str) -> Entry:
        spec = panel.spec(self.study.baseline, row, column)
        return next(entry for entry in self.entries if (entry.task, entry.spec) == (task, spec))

    def references_of(self, task: str) -> list[Entry]:
        return [entry for entry in self.references if entry.task == task]

    @property
    def failures(self) -> list[Entry]:
        return [entry for entry in self.entries + self.references if entry.failure]


def usual_references(study: Study) -> list[str]:
    """AdamW with a constant step size: at each one that the panels start from, and at its tuned
    one.
    """
    name, found = "adamw", []
    for panel in study.panels:
        axes = (panel.rows, panel.columns)
        swept = next((axis.values for axis in axes if axis.option == "lr"), None)
        own = options_of(study.baseline).get("lr")
        lrs = swept or (
            [panel.fixed["lr"]] if "lr" in panel.fixed else [own] if own is not None else []
        )
        found += [f"{name}:lr={float(lr):g},cosine=0" for lr in lrs]
    return [*dict.fromkeys(found), f"{name}:cosine=0"]


def ablate(
    study: Study,
    tasks: Sequence[Task],
    *,
    references: Sequence[str] | None = None,
    steps: int = 500,
    seeds: int = 5,
    tuning_seeds: int = 3,
    seed_offset: int = 0,
    workers: int = 1,
    data_dir: str | None = None,
    plugins: Sequence[str] = (),
    command: Sequence[str] = (),
    progress: Progress | None = None,
    store: Store | None = None,
) -> Ablation:
    """Run every cell on the reported seeds, paired, and the references, tuned over what their specs
    leave open.

    Raises:
        UserError: nothing to do, an unknown reference, numbers out of range.
    """
    labels = list(usual_references(study) if references is None else references)
    specs = list(
        dict.fromkeys(spec for panel in study.panels for spec in panel.specs(study.baseline))
    )
    check(tasks, specs, steps, workers)
    if labels:
        check(tasks, labels, steps, workers)
    grids = {label: make_grid(label) for label in labels}
    made = {label: make_baseline(label) for label in dict.fromkeys([*specs, *labels])}
    reported, chosen_on = (
        protocol.report_seeds(seeds, seed_offset),
        protocol.tuning_seeds(tuning_seeds, seed_offset),
    )
    plans: dict[tuple[str, str, str], Plan[Entry]] = {}
    for task in tasks:
        for label in labels:
            plan = _reference(task, label, made[label], grids[label], chosen_on, reported, steps)
            plans[task.name, "reference", label] = plan
        for spec in specs:
            plans[task.name, "cell", spec] = _entry(task, spec, made[spec], reported, steps)
    workshop = Workshop(tasks={task.name: task for task in tasks}, optimizers=dict(made))
    if workers > 1:
        workshop.recipe = make_recipe(tasks, {}, made, data_dir, tuple(plugins))
    if progress is not None:
        tried = sum(len(grid.settings) for grid in grids.values())
        progress.begin(
            len(tasks) * steps * ((len(specs) + len(labels)) * seeds + tried * tuning_seeds)
        )
    done = drive(plans, workshop, workers=workers, progress=progress, store=store)  # type: ignore[arg-type]
    return Ablation(
        tasks=tuple(task.name for task in tasks),
        study=study,
        entries=tuple(entry for key, entry in done.items() if key[1] == "cell"),
        references=tuple(entry for key, entry in done.items() if key[1] == "reference"),
        steps=steps,
        seeds=reported,
        tuning_seeds=chosen_on if labels else (),
        provenance=provenance(command),
    )


def _entry(
    task: Task, spec: str, optimizer: LearnedOptimizer, seeds: Sequence[int], steps: int
) -> Plan[Entry]:
    found = by_setting(
        (yield plan_cells(task.name, spec, [optimizer.theta()], seeds, steps, SPLITS))
    )
    if isinstance(found, Failure):
        return Entry(task=task.name, spec=spec, failure=found.reason)
    metrics, diverged = found
    own = {name: values[0] for name, values in metrics.items()}
    return Entry(task=task.name, spec=spec, metrics=own, diverged=diverged[0])


def _reference(
    task: Task,
    label: str,
    optimizer: LearnedOptimizer,
    grid: Grid,
    chosen_on: Sequence[int],
    seeds: Sequence[int],
    steps: int,
) -> Plan[Entry]:
    arm = yield from baseline_arm(task, label, optimizer, grid, chosen_on, seeds, steps)
    if arm.failure:
        return Entry(task=task.name, spec=label, failure=arm.failure)
    runs = arm.of(CHOSEN_BY) or arm.runs[0]
    setting = setting_label(runs.setting)
    return Entry(
        task=task.name, spec=label, metrics=runs.metrics, diverged=runs.diverged, setting=setting
    )


def to_json(result: Ablation) -> str:
    """Strict JSON: what is not finite is null."""
    return FILE.write(_plain(asdict(result)), None)


def from_json(text: str, source: str = "the file") -> Ablation:
    """The ablation again; raises UserError."""
    return FILE.read(text, source, _ablation)


def _ablation(data: dict[str, Any]) -> Ablation:
    study = data["study"]
    panels = tuple(
        Panel(**{**panel, **{side: _axis(panel[side]) for side in ("rows", "columns")}})
        for panel in study["panels"]
    )
    marks = tuple(Mark(**mark) for mark in study["marks"])
    entries = {key: tuple(_read(entry) for entry in data[key]) for key in ("entries", "references")}
    sequences = {key: tuple(data[key]) for key in ("tasks", "seeds", "tuning_seeds")}
    return Ablation(
        **{
            **data,
            **entries,
            **sequences,
            "study": Study(**{**study, "panels": panels, "marks": marks}),
        }
    )


def _axis(data: dict[str, Any]) -> Axis:
    return Axis(option=data["option"], values=tuple(data["values"]))


def _read(data: dict[str, Any]) -> Entry:
    metrics = {
        n: _array(x, np.inf if n.endswith("loss") else np.nan) for n, x in data["metrics"].items()
    }
    return Entry(
        **{**data, "metrics": metrics, "diverged": np.asarray(data["diverged"], dtype=bool)}
    )
