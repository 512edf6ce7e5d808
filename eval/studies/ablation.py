"""An ablation: every cell of every panel of a study, on every task, and reference numbers beside
them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from lo_framework.eval.baselines import setting_label
from lo_framework.eval.baselines.registry import options_of
from lo_framework.eval.running.envelope import Envelope, Numbers, require
from lo_framework.eval.running.pool import Plan
from lo_framework.eval.studies.evaluation import Drive, Evaluation, specs_of
from lo_framework.eval.studies.panels import Panel, Study, find_study
from lo_framework.eval.studies.request import AblationRequest

CHOSEN_BY = "final_loss"  # a reference is shown at its best setting for this


@dataclass(frozen=True, kw_only=True)
class Entry(Numbers):
    """One optimizer on one task over S seeds: metrics ``[S]``. ``setting``: what tuning chose, of a
    reference.
    """

    spec: str
    setting: str = ""


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

    def check(self) -> None:
        """Raise ValueError: a cell is missing, or its numbers do not fit the seeds."""
        study = self.study
        if not study.panels:
            raise ValueError("study.panels: expected at least one")
        specs = {spec for panel in study.panels for spec in panel.specs(study.baseline)}
        wanted = [(task, spec) for task in self.tasks for spec in specs]
        require(wanted, ((entry.task, entry.spec) for entry in self.entries))
        for entry in self.entries + self.references:
            entry.check(entry.spec, len(self.seeds))

    @property
    def failures(self) -> list[Entry]:
        return [entry for entry in self.entries + self.references if entry.failure]


def usual_references(study: Study) -> list[str]:
    """AdamW with a constant step size: at each one that the panels start from, and at its tuned
    one.
    """
    found = []
    for panel in study.panels:
        axes = (panel.rows, panel.columns)
        swept = next((axis.values for axis in axes if axis.option == "lr"), None)
        start = panel.fixed.get("lr", options_of(study.baseline).get("lr"))
        lrs = swept or [start]
        found += [f"adamw:lr={float(lr):g},cosine=0" for lr in lrs if lr is not None]
    return [*dict.fromkeys(found), "adamw:cosine=0"]


class AblationEvaluation(Evaluation[AblationRequest, Ablation]):
    """Every cell on the reported seeds, paired; the references, tuned over what they leave open."""

    def prepare(self) -> None:
        r = self.request
        self.study = find_study(r.baseline, r.panels, r.panel)
        panels = self.study.panels
        specs = (spec for panel in panels for spec in panel.specs(self.study.baseline))
        self.cells = list(dict.fromkeys(specs))
        given = r.references
        self.references = specs_of(given) if given else usual_references(self.study)
        self.add_baselines(self.cells, tuned=False)
        self.add_baselines(self.references)
        self.labels = self.references or self.cells
        runs = (len(self.cells) + len(self.references)) * r.seeds + self.tuning_runs
        self.work = runs * r.steps
        if not self.references:
            self.chosen_on = ()

    def compute(self, drive: Drive[Entry]) -> Ablation:
        asked = [(True, spec) for spec in self.references] + [(False, spec) for spec in self.cells]
        done = drive(self.each(asked, self._entry))
        references, entries = (
            tuple(entry for (_, (tuned, _)), entry in done.items() if tuned is wanted)
            for wanted in (True, False)
        )
        return Ablation(
            tasks=self.names,
            study=self.study,
            entries=entries,
            references=references,
            steps=self.request.steps,
            seeds=self.reported,
            tuning_seeds=self.chosen_on,
        )

    def _entry(self, task: str, asked: tuple[bool, str]) -> Plan[Entry]:
        """The entry of a reference, which is tuned, or of a cell."""
        tuned, spec = asked
        arm = yield from (self.tuned_arm if tuned else self.own_arm)(task, spec)
        entry = Entry(task=task, spec=spec, failure=arm.failure)
        if arm.failure:
            return entry
        runs = arm.of(CHOSEN_BY) or arm.runs[0]
        setting = setting_label(runs.setting)
        return replace(entry, metrics=runs.metrics, diverged=runs.diverged, setting=setting)


FILE = Envelope("ablation", Ablation)
