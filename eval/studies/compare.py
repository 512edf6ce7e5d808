"""The arms of `eval compare`: tuned ones, and ones that take over the reference's tuned settings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lo_framework.eval.baselines import Setting, make_baseline, make_thetas
from lo_framework.eval.running import protocol
from lo_framework.eval.running.cells import Failure, plan_cells
from lo_framework.eval.running.pool import Arm as Plan
from lo_framework.eval.running.pool import Outcome, Store, Workshop, drive
from lo_framework.eval.running.progress import Progress
from lo_framework.eval.running.provenance import provenance
from lo_framework.eval.running.tuning import Grid, make_grid
from lo_framework.eval.studies.result import Arm, Result
from lo_framework.eval.studies.transfer import (
    SPLITS,
    baseline_arm,
    check,
    gradients_per_step,
    make_recipe,
    runs_of,
)
from lo_framework.protocols import Task
from lo_framework.spec import UserError


@dataclass(frozen=True, kw_only=True)
class Taken:
    """An arm at the reference's tuned settings: ``spec``, with the learning rate times ``factor``."""

    spec: str
    factor: float = 1.0
    label: str


@dataclass(frozen=True, kw_only=True)
class Arms:
    """``tuned``: specs, the reference first; ``against``: those of the labels that all others are
    compared with.
    """

    tuned: tuple[str, ...]
    taken: tuple[Taken, ...]
    against: tuple[str, ...]
    grids: dict[str, Grid]

    @property
    def labels(self) -> list[str]:
        return [*self.tuned, *(taken.label for taken in self.taken)]


def plan_arms(
    reference: str,
    arms: Sequence[str],
    at_reference: Sequence[str],
    scaled: str,
    against: Sequence[str],
    grid_size: int | None,
) -> Arms:
    """Raises UserError: an unknown baseline or option, a factor that is none, nothing to compare."""
    name = reference.partition(":")[0]
    taken = [Taken(spec=spec, label=f"{spec} @{name}") for spec in at_reference]
    taken += [Taken(spec=reference, factor=x, label=f"{name} lr x{x:g}") for x in factors(scaled)]
    tuned = (reference, *arms)
    for each in taken:
        make_thetas(make_baseline(each.spec), [{"lr": 1.0, "cosine": 0.0}])
    grids = {spec: make_grid(spec, grid_size) for spec in tuned}
    found = Arms(
        tuned=tuned,
        taken=tuple(taken),
        against=tuple(dict.fromkeys((reference, *against))),
        grids=grids,
    )
    if unknown := [label for label in against if label not in found.labels]:
        raise UserError(
            f"--against {unknown[0]}: there is no such arm; there are {', '.join(found.labels)}"
        )
    if len(found.labels) < 2:
        raise UserError("nothing to compare: give --arms, --at-reference or --scaled")
    return found


def factors(text: str) -> list[float]:
    """``"0.5,1.5"`` to numbers. Raises UserError."""
    try:
        found = [float(word) for word in text.split(",")] if text else []
    except ValueError:
        found = [math.nan]
    if not all(0 < x < math.inf for x in found):
        raise UserError(f"--scaled {text}: expected positive factors, as 0.5,0.75,1.25")
    return found


def compare_arms(
    arms: Arms,
    tasks: Sequence[Task],
    *,
    steps: int,
    seeds: int,
    tuning_seeds: int,
    seed_offset: int = 0,
    workers: int = 1,
    data_dir: str | None = None,
    plugins: Sequence[str] = (),
    command: Sequence[str] = (),
    progress: Progress | None = None,
    store: Store | None = None,
) -> Result:
    """Run every arm on every task; as a `Result` whose ``baselines`` are the arms that others are
    compared with.
    """
    check(tasks, arms.labels, steps, workers)
    reported, chosen_on = (
        protocol.report_seeds(seeds, seed_offset),
        protocol.tuning_seeds(tuning_seeds, seed_offset),
    )
    specs = dict.fromkeys([*arms.tuned, *(taken.spec for taken in arms.taken)])
    made = {spec: make_baseline(spec) for spec in specs}
    context: dict[str, Any] = dict(chosen_on=chosen_on, reported=reported, steps=steps)
    plans: dict[str, Plan[list[Arm]]] = {}
    for task in tasks:
        plans[f"{task.name} reference"] = _reference(task, arms, made, **context)
        for spec in arms.tuned[1:]:
            plans[f"{task.name} {spec}"] = _alone(
                task, spec, made[spec], arms.grids[spec], **context
            )
    workshop = Workshop(tasks={task.name: task for task in tasks}, optimizers=dict(made))
    if workers > 1:
        workshop.recipe = make_recipe(tasks, {}, made, data_dir, tuple(plugins))
    if progress is not None:
        runs = sum(len(grid.settings) * tuning_seeds + 2 * seeds for grid in arms.grids.values())
        progress.begin(len(tasks) * steps * (runs + 2 * len(arms.taken) * seeds))
    done = drive(plans, workshop, workers=workers, progress=progress, store=store)
    by_place = {(arm.task, arm.optimizer): arm for found in done.values() for arm in found}
    ordered = tuple(by_place[task.name, label] for task in tasks for label in arms.labels)
    return Result(
        tasks=tuple(task.name for task in tasks),
        learned=tuple(label for label in arms.labels if label != arms.tuned[0]),
        baselines=arms.against,
        arms=ordered,
        steps=steps,
        tuning_seeds=chosen_on,
        report_seeds=reported,
        provenance=provenance(command),
    )


def _alone(
    task: Task,
    spec: str,
    optimizer: Any,
    grid: Grid,
    *,
    chosen_on: Sequence[int],
    reported: Sequence[int],
    steps: int,
) -> Plan[list[Arm]]:
    return [(yield from baseline_arm(task, spec, optimizer, grid, chosen_on, reported, steps))]


def _reference(
    task: Task,
    arms: Arms,
    made: dict[str, Any],
    *,
    chosen_on: Sequence[int],
    reported: Sequence[int],
    steps: int,
) -> Plan[list[Arm]]:
    """The tuned reference, then all arms that take over its settings."""
    spec = arms.tuned[0]
    first = yield from baseline_arm(
        task, spec, made[spec], arms.grids[spec], chosen_on, reported, steps
    )
    if first.failure:
        reason = f"the reference failed: {first.failure}"
        rest = [
            Arm(task=task.name, optimizer=t.label, learned=False, failure=reason)
            for t in arms.taken
        ]
        return [first, *rest]
    cells, shares = [], []
    for taken in arms.taken:
        settings = [_scaled(runs.setting, taken.factor) for runs in first.runs]
        mine = []
        for theta in make_thetas(made[taken.spec], settings):
            mine += plan_cells(task.name, taken.spec, [theta], reported, steps, SPLITS)
        cells += mine
        shares.append(settings)
    outcomes: Iterator[Outcome] = iter((yield cells) if cells else [])
    found = [first]
    for taken, settings in zip(arms.taken, shares, strict=True):
        got = [next(outcomes) for _ in settings]
        bad = next((x for x in got if isinstance(x, Failure)), None)
        arm = Arm(task=task.name, optimizer=taken.label, learned=False)
        if bad is not None:
            found.append(replace(arm, failure=bad.reason))
            continue
        found.append(
            replace(
                arm,
                runs=tuple(
                    runs_of(x, 0, setting) for x, setting in zip(got, settings, strict=True)
                ),
                chosen=first.chosen,
                gradients_per_step=gradients_per_step(made[taken.spec]),
                parameters=got[0].parameters,
                state_floats=got[0].state_floats,
            )
        )
    return found


def _scaled(setting: Setting, factor: float) -> Setting:
    """What of the reference's setting others have too."""
    return {"lr": float(f"{setting['lr'] * factor:.4g}"), "cosine": setting.get("cosine", 0.0)}
