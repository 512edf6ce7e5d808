"""The result of a sharpness evaluation: every number of every seed, and its JSON form
(`sharpness.json`).

The runs are kept as plain JSON values (None: not finite, or not measured), exactly as the cells
gave them: what is saved, loaded and drawn is the same.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

import numpy as np

from lo_framework.errors import shown
from lo_framework.eval.running.envelope import Arms, Envelope, OnTask
from lo_framework.eval.sharpness.metrics import EQUAL, PLACES, read
from lo_framework.eval.statistics import Array
from lo_framework.schema import Positive, Via, convert

Number = float | None  # None: not finite, or not measured
Columns = dict[str, list[Any]]


def _ball(columns: Columns) -> Columns:
    """Return the columns. Raises ValueError: one is missing, or not as long as the others."""
    for name in ("labels", "radii", "gap"):
        if name not in columns:
            raise ValueError(f"a ball without {name}")
    for name, values in columns.items():
        hint = {"labels": list[str], "radii": list[float]}.get(name, list[Number])
        if len(convert(values, hint)) != len(columns["labels"]):
            raise ValueError(f"{name} and labels are not of one length")
    return columns


@dataclass(frozen=True, kw_only=True)
class _Point:
    """The JSON that `measuring.measure_point` makes."""

    values: dict[str, Number]
    balls: dict[str, Annotated[Columns, Via(Columns, _ball)]]
    spectrum: dict[str, dict[str, list[Number]]]
    slices: dict[str, Columns]
    failures: dict[str, str]
    rows: int
    cost: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class _Watch:
    steps: list[int]
    loss: list[Number]
    path: list[Number]


@dataclass(frozen=True, kw_only=True)
class _Training:
    """The JSON that `cells.TrainCell` makes."""

    final: dict[str, Number]
    curve: list[Number]
    diverged: bool
    seconds: float
    parameters: int
    watch: _Watch
    probe: dict[str, list[Number]] | None
    probe_failure: str


@dataclass(frozen=True, kw_only=True)
class _Settings:
    steps: int
    radii: list[Positive]
    effort: str
    probe: str
    level: dict[str, Any]
    choose_by: str = "training"  # of baselines; files of before have no other


Point = Annotated[dict[str, Any], Via(_Point, asdict)]
Training = Annotated[
    dict[str, Any],
    Via(dict[str, Any], lambda found: asdict(convert(found, _Training)) if found else {}),
]
Settings = Annotated[dict[str, Any], Via(_Settings, asdict)]


@dataclass(frozen=True, kw_only=True)
class SeedRun:
    """One seed of one optimizer on one task.

    Attributes:
        train: what `cells.TrainCell` gave: final metrics, the curves, the probe; empty if that
            failed.
        step: the step of matched training loss; None: censored. target: that loss.
        equal, matched: what `measuring.measure_point` gave at the last step and at `step`; None:
            nothing.
        failure: why something is missing, in one line, or "".
    """

    seed: int
    train: Training = field(default_factory=dict)
    target: float | None = None
    step: int | None = None
    equal: Point | None = None
    matched: Point | None = None
    failure: str = ""

    @property
    def diverged(self) -> bool:
        return bool(self.train.get("diverged", False))

    @property
    def finished(self) -> bool:
        """Tell whether the run was trained and did not diverge."""
        return bool(self.train) and not self.diverged

    def point(self, place: str) -> Point | None:
        return self.equal if place == EQUAL else self.matched


@dataclass(frozen=True, kw_only=True)
class Arm(OnTask):
    """One optimizer on one task, all seeds. ``setting``: of a baseline, from its tuning."""

    runs: tuple[SeedRun, ...] = ()
    setting: dict[str, float] = field(default_factory=dict)

    def values(self, key: str, place: str) -> Array:
        """Return ``[S]`` of a measured number by its key (`metrics.read`); nan for none."""
        return np.array([read(run.point(place), key) for run in self.runs], dtype=np.float64)

    @property
    def diverged(self) -> int:
        return sum(run.diverged for run in self.runs)

    @property
    def censored(self) -> int:
        """Count trained runs that never came to the matched loss."""
        return sum(bool(run.train) and run.step is None for run in self.runs)


@dataclass(frozen=True, kw_only=True)
class Result(Arms[Arm]):
    """A whole evaluation. ``settings``: what was asked for."""

    arms: tuple[Arm, ...]
    settings: Settings
    seeds: tuple[int, ...]

    def check(self) -> None:
        """Raise ValueError: an arm or its runs are missing, or there are no radii."""
        super().check()
        for arm in self.arms:
            if not arm.failure and [run.seed for run in arm.runs] != [*self.seeds]:
                raise ValueError(f"{shown(arm.task)}, {shown(arm.optimizer)}: not of all seeds")
        if not self.settings["radii"]:
            raise ValueError("settings.radii: expected at least one")

    @property
    def failures(self) -> list[str]:
        """Return one line for everything that is missing."""
        lines = []
        for arm in self.arms:
            name = f"{arm.task}, {arm.optimizer}"
            lines += [f"{name}: {arm.failure}"] if arm.failure else []
            lines += [f"{name}, seed {run.seed}: {run.failure}" for run in arm.runs if run.failure]
            for run in arm.runs:
                if why := run.train.get("probe_failure"):
                    lines.append(f"{name}, seed {run.seed}, probe: {why}")
                for place in PLACES:
                    lost = (run.point(place) or {}).get("failures", {})
                    lines += [
                        f"{name}, seed {run.seed}, {PLACES[place]}, {what}: {why}"
                        for what, why in lost.items()
                    ]
        return list(dict.fromkeys(lines))

    @property
    def worked(self) -> bool:
        return any(run.equal is not None for arm in self.arms for run in arm.runs)


FILE = Envelope("sharpness", Result)
