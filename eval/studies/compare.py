"""Baselines against each other, each tuned or at the reference's tuned settings."""

from __future__ import annotations

from dataclasses import dataclass, replace

from lo_framework.eval.baselines import make_baseline, make_thetas
from lo_framework.eval.running.cells import Failure, arrays_of
from lo_framework.eval.running.costs import Cost, CostCell
from lo_framework.eval.running.pool import Plan
from lo_framework.eval.running.protocol import BY_KEY, METRICS
from lo_framework.eval.studies.evaluation import Drive, Evaluation, factors, specs_of
from lo_framework.eval.studies.request import LEARNED, CompareRequest
from lo_framework.eval.studies.result import Arm, Result
from lo_framework.spec import UserError


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
        arms = [spec for spec in specs_of(r.arms) if not spec.startswith(LEARNED)]
        self.taken, self.tuned = taken, [r.reference, *arms]
        if r.choose_by == "validation":
            self.metrics = (BY_KEY["test_loss"],)  # which validation data choose
        compared = self.add_scaled(r.step_scales)
        against = specs_of(r.against)
        self.against = tuple(dict.fromkeys((r.reference, *against)))
        self.labels = [*self.tuned, *compared, *(each.label for each in taken)]
        # Cells have other names for those at the reference's settings.
        self.specs = {label: label for label in self.labels} | {x.label: x.spec for x in taken}
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

    def compute(self, drive: Drive[Arm]) -> Result:
        arms = drive(self.each([*self.tuned, *self.learned, *self.scaled], self.best_arm))
        taken = self.each(self.taken, lambda task, one: self._at(arms[task, self.tuned[0]], one))
        arms |= {(task, one.label): arm for (task, one), arm in drive(taken).items()}
        return Result(
            tasks=self.names,
            learned=tuple(self.labels[1:]),
            baselines=self.against,
            arms=tuple(self.each(self.labels, lambda *pair: arms[pair]).values()),
            steps=self.request.steps,
            tuning_seeds=self.chosen_on,
            report_seeds=self.reported,
            files=self.files,
            chosen_by="" if self.metrics is METRICS else "validation loss",
        )

    def with_costs(self, result: Result, drive: Drive[Arm]) -> Result:
        plans = {(arm.task, arm.optimizer): self._costed(arm) for arm in result.arms}
        return replace(result, arms=tuple(drive(plans).values()))

    def _costed(self, arm: Arm) -> Plan[Arm]:
        """The arm with what a step of it costs, at its setting with the best final loss."""
        if arm.failure:
            return arm
        runs, spec = arm.of("final_loss") or arm.runs[0], self.specs[arm.optimizer]
        (theta,) = make_thetas(self.optimizers[spec], [runs.setting])
        cell = CostCell(
            task=arm.task, optimizer=spec, theta=arrays_of(theta), seed=self.reported[0]
        )
        (outcome,) = yield [cell]
        if isinstance(outcome, Failure):
            return replace(arm, notes=(*arm.notes, f"no costs: {outcome.reason}"))
        return replace(arm, cost=Cost(**outcome.data))

    def _at(self, reference: Arm, taken: Taken) -> Plan[Arm]:
        """The arm that takes over the reference's settings."""
        arm = replace(reference, optimizer=taken.label, runs=(), tuned=(), notes=())
        if arm.failure:
            return replace(arm, failure=f"the reference failed: {arm.failure}")
        settings = [
            # What every baseline has: the learning rate and its schedule.
            {
                "lr": float(f"{runs.setting['lr'] * taken.factor:.4g}"),
                "cosine": runs.setting.get("cosine", 0.0),
            }
            for runs in reference.runs
        ]
        return (yield from self.run_settings(arm, taken.spec, settings))
