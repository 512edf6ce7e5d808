"""The result of a transfer evaluation: every number of every seed, and its JSON form."""

from __future__ import annotations

from dataclasses import dataclass, field

from lo_framework.errors import shown
from lo_framework.eval.baselines import Setting
from lo_framework.eval.running.costs import Cost
from lo_framework.eval.running.envelope import (
    Arms,
    Curves,
    Envelope,
    Flags,
    Measured,
    Metrics,
    OnTask,
    require,
    require_shape,
)
from lo_framework.eval.running.protocol import BY_KEY
from lo_framework.eval.statistics import Array


@dataclass(frozen=True, kw_only=True)
class Runs:
    """One setting on all S reported seeds.

    Attributes:
        setting: of a baseline, or of the tuned form of a learned optimizer; empty for one as it is.
        metrics: name -> ``[S]``; losses of diverged runs are infinite, their accuracies nan.
        curves: ``[S, T]`` minibatch training loss before each update.
        diverged: ``[S]`` bool.
        seconds_per_step: wall time of one task-step while several seeds ran in one vmap; noisy.
    """

    setting: Setting
    metrics: Metrics
    curves: Curves
    diverged: Flags
    seconds_per_step: Measured


@dataclass(frozen=True, kw_only=True)
class Arm(OnTask):
    """One optimizer on one task.

    Attributes:
        chosen: metric -> index into ``runs`` of the setting whose result is reported for it.
        cost: of a step, in a process of its own; None: not measured.
        data: what is to be known of the task's data; "" if nothing.
        parameters: of the task; state_floats: numbers of optimizer state per parameter.
    """

    runs: tuple[Runs, ...] = ()
    chosen: dict[str, int] = field(default_factory=dict)
    data: str = ""
    parameters: int = 0
    state_floats: float = 0.0
    cost: Cost | None = None

    def of(self, metric: str) -> Runs | None:
        """The runs that are reported for ``metric``; None if it was not measured."""
        return self.runs[self.chosen[metric]] if metric in self.chosen else None

    def values(self, metric: str) -> Array | None:
        """``[S]`` values of ``metric``, from its own best setting."""
        runs = self.of(metric)
        return None if runs is None else runs.metrics[metric]


@dataclass(frozen=True, kw_only=True)
class Result(Arms[Arm]):
    """A whole evaluation.

    Attributes:
        chosen_by: what one setting of each optimizer was chosen by, for every metric; "": each
            metric has its own.
    """

    arms: tuple[Arm, ...]
    steps: int
    report_seeds: tuple[int, ...]
    chosen_by: str = ""

    def check(self) -> None:
        """Raise ValueError: an arm is missing, or its numbers do not fit seeds and steps."""
        super().check()
        seeds = len(self.report_seeds)
        for arm in self.arms:
            name = f"{shown(arm.task)}, {shown(arm.optimizer)}"
            if not (arm.runs or arm.failure):
                raise ValueError(f"{name}: neither runs nor a failure")
            for key, index in arm.chosen.items():
                if key not in BY_KEY or not 0 <= index < len(arm.runs):
                    raise ValueError(f"{name}: no run is chosen by {shown(key)} {shown(index)}")
                require([(key,)], ((metric,) for metric in arm.runs[index].metrics))
            for runs in arm.runs:
                require_shape(f"{name}: diverged", runs.diverged, seeds)
                require_shape(f"{name}: curves", runs.curves, seeds, self.steps)
                for key, values in runs.metrics.items():
                    require_shape(f"{name}: {shown(key)}", values, seeds)

    @property
    def failures(self) -> list[Arm]:
        return [arm for arm in self.arms if arm.failure]


FILE = Envelope("transfer", Result)
