"""What a sharpness evaluation found: every number of every seed, and its JSON form
(`sharpness.json`).

The runs are kept as plain JSON values (None: not finite, or not measured), exactly as the cells
gave them: what is saved, loaded and drawn is the same.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from lo_framework.eval.running.envelope import Envelope
from lo_framework.eval.sharpness.metrics import EQUAL, PLACES, read
from lo_framework.eval.statistics import Array

FILE = Envelope("sharpness", "sharpness.json", version=1)

Point = dict[str, Any]


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
    train: dict[str, Any] = field(default_factory=dict)
    target: float | None = None
    step: int | None = None
    equal: Point | None = None
    matched: Point | None = None
    failure: str = ""

    @property
    def diverged(self) -> bool:
        return bool(self.train.get("diverged", False))

    def point(self, place: str) -> Point | None:
        return self.equal if place == EQUAL else self.matched


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One optimizer on one task, all seeds. ``setting``, ``tuned``, ``notes``: of a baseline, from
    its tuning.
    """

    task: str
    optimizer: str
    learned: bool
    runs: tuple[SeedRun, ...] = ()
    setting: dict[str, float] = field(default_factory=dict)
    tuned: tuple[dict[str, Any], ...] = ()
    notes: tuple[str, ...] = ()
    gradients_per_step: float = 1.0
    failure: str = ""

    def values(self, key: str, place: str) -> Array:
        """``[S]`` of a measured number by its key (`metrics.read`); nan where there is none."""
        return np.array([read(run.point(place), key) for run in self.runs], dtype=np.float64)

    @property
    def diverged(self) -> int:
        return sum(run.diverged for run in self.runs)

    @property
    def censored(self) -> int:
        """Trained runs that never came to the matched loss."""
        return sum(bool(run.train) and run.step is None for run in self.runs)


@dataclass(frozen=True, kw_only=True)
class Result:
    """A whole evaluation. ``arms`` by (task, optimizer), tasks outermost. ``settings``: what was
    asked for.
    """

    tasks: tuple[str, ...]
    learned: tuple[str, ...]
    baselines: tuple[str, ...]
    arms: tuple[Arm, ...]
    settings: dict[str, Any]
    seeds: tuple[int, ...]
    tuning_seeds: tuple[int, ...]
    files: dict[str, str] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    def arm(self, task: str, optimizer: str) -> Arm:
        return next(arm for arm in self.arms if (arm.task, arm.optimizer) == (task, optimizer))

    @property
    def optimizers(self) -> tuple[str, ...]:
        return self.learned + self.baselines

    @property
    def failures(self) -> list[str]:
        """One line for everything that is missing."""
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


def to_json(result: Result, derived: dict[str, Any] | None = None) -> str:
    """Strict JSON."""
    return FILE.write(asdict(result), derived)


def from_json(text: str, source: str = "the file") -> Result:
    """The result again; raises UserError. ``source`` names it in errors."""
    return FILE.read(text, source, _result)


def _result(data: dict[str, Any]) -> Result:
    arms = []
    for arm in data["arms"]:
        runs = tuple(SeedRun(**run) for run in arm["runs"])
        arms.append(
            Arm(**{**arm, "runs": runs, "tuned": tuple(arm["tuned"]), "notes": tuple(arm["notes"])})
        )
    sequences = ("tasks", "learned", "baselines", "seeds", "tuning_seeds")
    fields: dict[str, Any] = {
        key: tuple(x) if key in sequences else x for key, x in data.items() if key != "arms"
    }
    return Result(arms=tuple(arms), **fields)
