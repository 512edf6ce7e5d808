"""Baselines against each other, each tuned or at the reference's tuned settings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

from lo_framework.errors import shown
from lo_framework.eval.baselines import Setting, make_baseline, make_thetas
from lo_framework.eval.running.pool import Arm as Plan
from lo_framework.eval.studies.arms import run_settings
from lo_framework.eval.studies.evaluation import Drive, Evaluation, specs_of
from lo_framework.eval.studies.request import CompareRequest
from lo_framework.eval.studies.result import Arm, Result
from lo_framework.spec import UserError

MOST = 100  # factors


@dataclass(frozen=True, kw_only=True)
class Taken:
    """An arm at the reference's tuned settings: ``spec``, the learning rate times ``factor``."""

    spec: str
    factor: float = 1.0
    label: str


class CompareEvaluation(Evaluation[CompareRequest, Result]):
    """Tuned baselines, the reference first, and what runs at the reference's tuned settings.

    The result's ``baselines`` are the arms that all others are compared with.
    """

    def prepare(self) -> None:
        r = self.request
        name = r.reference.partition(":")[0]
        taken = [Taken(spec=spec, label=f"{spec} @{name}") for spec in specs_of(r.at_reference)]
        taken += [
            Taken(spec=r.reference, factor=x, label=f"{name} lr x{x:g}") for x in factors(r.scaled)
        ]
        self.taken, self.tuned = taken, [r.reference, *specs_of(r.arms)]
        against = specs_of(r.against)
        self.against = tuple(dict.fromkeys((r.reference, *against)))
        self.labels = [*self.tuned, *(each.label for each in taken)]
        for each in taken:
            make_thetas(make_baseline(each.spec), [{"lr": 1.0, "cosine": 0.0}])
        self.add_baselines(self.tuned)
        self.add_baselines([each.spec for each in taken], tuned=False)
        if unknown := [label for label in against if label not in self.labels]:
            raise UserError(
                f"--against {unknown[0]}: there is no such arm; there are {', '.join(self.labels)}"
            )
        if len(self.labels) < 2:
            raise UserError("nothing to compare: give --arms, --at-reference or --scaled")
        self.work = (self.tuning_runs + 2 * len(self.labels) * r.seeds) * r.steps

    def compute(self, drive: Drive[list[Arm]]) -> Result:
        plans = {
            f"{task.name} {spec}": self._arms(task.name, spec)
            for task in self.tasks
            for spec in self.tuned
        }
        arms = {(arm.task, arm.optimizer): arm for some in drive(plans).values() for arm in some}
        return Result(
            tasks=tuple(task.name for task in self.tasks),
            learned=tuple(self.labels[1:]),
            baselines=self.against,
            arms=tuple(arms[task.name, label] for task in self.tasks for label in self.labels),
            steps=self.request.steps,
            tuning_seeds=self.chosen_on,
            report_seeds=self.reported,
        )

    def _arms(self, task: str, spec: str) -> Plan[list[Arm]]:
        """The tuned arm; after the reference, all arms that take over its settings."""
        first = yield from self.tuned_arm(task, spec)
        if spec != self.tuned[0]:
            return [first]
        arms = [replace(first, optimizer=taken.label, tuned=(), notes=()) for taken in self.taken]
        if first.failure:
            reason = f"the reference failed: {first.failure}"
            return [first, *(replace(arm, failure=reason) for arm in arms)]
        plans = []
        for arm, taken in zip(arms, self.taken, strict=True):
            settings = [_scaled(runs.setting, taken.factor) for runs in first.runs]
            plans.append(
                run_settings(
                    replace(arm, runs=()),
                    taken.spec,
                    self.optimizers[taken.spec],
                    settings,
                    self.reported,
                    self.request.steps,
                )
            )
        return [first, *(yield from _together(plans))]


def _together(plans: Sequence[Plan[Arm]]) -> Plan[list[Arm]]:
    """Run plans that ask for cells once as one plan, whose cells are computed side by side."""
    cells = [next(plan) for plan in plans]
    outcomes = iter((yield [*chain(*cells)]) if cells else ())
    arms = []
    for plan, asked in zip(plans, cells, strict=True):
        try:
            plan.send([next(outcomes) for _ in asked])
        except StopIteration as stop:
            arms.append(stop.value)
    return arms


def factors(text: str) -> list[float]:
    """``"0.5,1.5"`` to numbers. Raises UserError."""
    try:
        found = [float(word) for word in text.split(",")] if text else []
    except ValueError:
        found = [math.nan]
    if len(found) > MOST or not all(0 < x < math.inf for x in found):
        raise UserError(
            f"--scaled {shown(text)}: expected at most {MOST} positive factors, as 0.5,0.75,1.25"
        )
    return found


def _scaled(setting: Setting, factor: float) -> Setting:
    """The reference's learning rate times ``factor``, and its schedule: what every baseline has."""
    return {"lr": float(f"{setting['lr'] * factor:.4g}"), "cosine": setting.get("cosine", 0.0)}
