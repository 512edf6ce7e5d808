"""Learned optimizers on a fixed suite of held-out problems, relative to tuned AdamW.

Only the learned optimizers have to run: AdamW's results are stored beside the suite
(`eval.score.adamw`), which ``tune`` makes and ``verify`` checks. All see the same initial
parameters and the same batches of a seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lo_framework.eval.baselines import Setting, make_thetas, setting_label
from lo_framework.eval.running.cells import Failure, plan_cells
from lo_framework.eval.running.envelope import Arms, Envelope, require, require_shape
from lo_framework.eval.running.pool import Plan
from lo_framework.eval.running.protocol import tuning_seeds
from lo_framework.eval.running.provenance import provenance
from lo_framework.eval.running.tuning import make_grid, tune
from lo_framework.eval.score import adamw
from lo_framework.eval.score.adamw import ADAMW, Stored
from lo_framework.eval.score.held_out import require_held_out
from lo_framework.eval.score.measures import CHOSEN, LAST, WIDTH, Scored, scored
from lo_framework.eval.score.suite import SHIPPED, Problem, read_suite, task_of
from lo_framework.eval.statistics import Array
from lo_framework.eval.studies.evaluation import (
    Drive,
    Evaluation,
    gradients_per_step,
    specs_of,
)
from lo_framework.eval.studies.request import ScoreRequest
from lo_framework.optimizees.task import Task
from lo_framework.spec import UserError

MEASURED = ("test",)


@dataclass(frozen=True, kw_only=True)
class Scores(Arms[Scored]):
    """A whole score; ``adamw`` has tuned AdamW's results, one a problem."""

    arms: tuple[Scored, ...]
    problems: tuple[Problem, ...]
    adamw: tuple[Scored, ...]
    report_seeds: tuple[int, ...]

    def check(self) -> None:
        """Raise ValueError: an arm is missing, or its numbers do not fit the seeds."""
        super().check()
        require([(name,) for name in self.tasks], ((one.task,) for one in self.adamw))
        require([(name,) for name in self.tasks], ((problem.name,) for problem in self.problems))
        names = ("last_loss", "test_loss", "first_loss", "peak_loss", "steps")
        for one in (*self.arms, *self.adamw):
            if not one.failure:
                require([(name,) for name in names], ((key,) for key in one.metrics))
                for key, values in {**one.metrics, "diverged": one.diverged}.items():
                    require_shape(f"{one.task}, {one.optimizer}: {key}", values, *self._shape)

    @property
    def failures(self) -> list[Scored]:
        return [one for one in (*self.adamw, *self.arms) if one.failure]

    @property
    def _shape(self) -> tuple[int]:
        return (len(self.report_seeds),)

    def reference(self, problem: str) -> Scored:
        """Tuned AdamW on a problem."""
        return next(one for one in self.adamw if one.task == problem)


class ScoreEvaluation(Evaluation[ScoreRequest, Scores]):
    """Every learned optimizer and every baseline on every problem of the suite."""

    def prepare(self) -> None:
        r = self.request
        self.suite = Path(r.suite) if r.suite else SHIPPED
        self.problems = read_suite(self.suite, [x.strip() for x in r.problems.split(",") if x])
        self.chosen_on = tuning_seeds(adamw.TUNING_SEEDS)
        self.baselines = specs_of(r.baselines)
        self.forms = self.add_scaled(r.step_scales)
        self.judged = [*self.forms, *self.baselines]
        self.labels = self.judged or [ADAMW]
        if not (self.judged or r.tune or r.verify):
            raise UserError("nothing to score: give an optimizer file, --baselines or --tune")
        self.add_baselines(self.baselines)
        if ADAMW not in self.optimizers and (r.tune or r.verify):
            self.add_baselines([ADAMW])
        self.steps = {problem.name: problem.steps for problem in self.problems}
        for path in self.files.values():
            require_held_out(self.problems, path, r.data_dir)

    def make_tasks(self) -> Sequence[Task]:
        where = (self.request.data_dir, self.request.device)
        made = {problem.name: task_of(problem, *where) for problem in self.problems}
        grid = make_grid(ADAMW)
        origins = {x.name: adamw.origin(x, made[x.name], grid) for x in self.problems}
        self.origins, self.trained = origins, {name: task.name for name, task in made.items()}
        tasks = {task.name: task for task in made.values()}
        self.stored = adamw.read(self.suite)
        if self.request.tune:
            adamw.require_place(self.suite, self.stored, self.reported, not self.request.problems)
        else:
            self.known = adamw.usable(self.stored, origins, self.reported, self.suite)
        runs = self.tuning_runs + (len(self.learned) + 2 * len(self.grids)) * len(self.reported)
        self.work = -(-sum(self.steps.values()) * runs // len(tasks))
        return [*tasks.values()]

    def compute(self, drive: Drive[Scored]) -> Scores:
        names = [problem.name for problem in self.problems]
        if self.request.tune:
            tuned = drive({name: self._tuned(name, ADAMW, None) for name in names})
            self._keep([one for one in tuned.values() if not one.failure])
            self.known = tuned
        elif self.request.verify:
            self._verify(drive)
        names = [name for name in names if not self.known[name].failure]
        pairs = [(name, label) for name in names for label in self.judged]
        done = drive({pair: self._arm(*pair) for pair in pairs})
        return Scores(
            tasks=tuple(names),
            learned=tuple(self.forms),
            baselines=tuple(self.baselines),
            arms=tuple(done.values()),
            problems=self.problems,
            adamw=tuple(self.known.values()),
            tuning_seeds=self.chosen_on,
            report_seeds=self.reported,
            files=self.files,
        )

    def _arm(self, name: str, label: str) -> Plan[Scored]:
        target = self.known[name].metrics["last_loss"]
        if label in self.learned:
            arm = Scored(task=name, optimizer=label, learned=True)
            return self._run(arm, {LAST.key: {}}, target)
        return self._tuned(name, label, target)

    def _tuned(self, name: str, spec: str, target: Array | None) -> Plan[Scored]:
        """A baseline, or a learned optimizer's tuned form, at its best settings."""
        arm = Scored(task=name, optimizer=spec, learned=spec in self.scaled)
        grid = self.grids[spec]
        told = (self.trained[name], spec, self.optimizers[spec], grid, self.chosen_on)
        tuning = yield from tune(*told, self.steps[name], metrics=CHOSEN, last=WIDTH)
        if isinstance(tuning, Failure):
            return replace(arm, failure=f"tuning: {tuning.reason}")
        settings = {key: tuning.settings[i] for key, i in tuning.chosen.items()}
        arm = replace(arm, tuned=tuning.records(), notes=tuning.notes)
        return (yield from self._run(arm, settings, target))

    def _run(
        self,
        arm: Scored,
        settings: dict[str, Setting],
        target: Array | None,
        seeds: int | None = None,
    ) -> Plan[Scored]:
        """``arm`` with its runs at ``settings``, which are by metric; one of none serves all."""
        spec, name = arm.optimizer, arm.task
        distinct = {setting_label(setting): setting for setting in settings.values()}
        cells = []
        for theta in make_thetas(self.optimizers[spec], [*distinct.values()]):
            told = (self.reported[:seeds], self.steps[name], MEASURED)
            cells += plan_cells(self.trained[name], spec, [theta], *told)
        outcomes = yield cells
        for outcome in outcomes:
            if isinstance(outcome, Failure):
                return replace(arm, failure=outcome.reason)
        runs = dict(zip(distinct, outcomes, strict=True))
        chosen = {m.key: settings.get(m.key, settings[LAST.key]) for m in CHOSEN}
        arm = replace(
            arm,
            settings={} if spec in self.learned else chosen,
            gradients_per_step=gradients_per_step(self.optimizers[spec]),
        )
        return scored(arm, {key: runs[setting_label(x)] for key, x in chosen.items()}, target)

    def _keep(self, results: Sequence[Scored]) -> None:
        """Store AdamW's results; what is there of other problems on the same seeds stays."""
        fresh = {one.task: one for one in results}
        old = self.stored if self.stored.seeds == self.reported else Stored()
        kept = {one.task: one for one in old.results if one.task in old.origins}
        every = [problem.name for problem in read_suite(self.suite)]
        merged = {name: one for name in every if (one := fresh.get(name, kept.get(name)))}
        origins = {**old.origins, **self.origins}
        stored = Stored(
            results=tuple(merged.values()),
            origins={name: origins[name] for name in merged},
            seeds=self.reported,
            provenance=provenance(),
        )
        adamw.write(self.suite, stored)

    def _verify(self, drive: Drive[Scored]) -> None:
        """Raise UserError: AdamW's stored setting gives another loss on the first seed."""
        plans = {}
        for name, known in self.known.items():
            arm = Scored(task=name, optimizer=ADAMW, learned=False)
            setting = {LAST.key: known.settings[LAST.key]}
            plans[name] = self._run(arm, setting, known.metrics["last_loss"][:1], 1)
        faults = []
        for name, again in drive(plans).items():
            there = float(self.known[name].metrics["last_loss"][0])
            here = float("nan") if again.failure else float(again.metrics["last_loss"][0])
            if not abs(here - there) <= adamw.MOST * there:
                faults.append(f"{name} {here:.4g} where {there:.4g} is stored")
        if faults:
            raise UserError(
                f"AdamW's last loss differs by more than {adamw.MOST:.0%}: {'; '.join(faults)}; "
                "scores here would not be comparable: store this machine's by --tune"
            )


FILE = Envelope("score", Scores)
