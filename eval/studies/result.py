"""What an evaluation found: every number of every seed, and its JSON form (`transfer.json`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from lo_framework.eval.baselines import Setting
from lo_framework.eval.running.envelope import Envelope
from lo_framework.eval.statistics import Array

FILE = Envelope("transfer", "transfer.json", version=1)


@dataclass(frozen=True, kw_only=True)
class Runs:
    """One setting on all S reported seeds.

    Attributes:
        setting: of a baseline; empty for a learned optimizer.
        metrics: name -> ``[S]``; losses of diverged runs are infinite, their accuracies nan.
        curves: ``[S, T]`` minibatch training loss before each update.
        diverged: ``[S]`` bool.
        seconds_per_step: wall time of one task-step while several seeds ran in one vmap; noisy.
    """

    setting: Setting
    metrics: dict[str, Array]
    curves: Array
    diverged: Array
    seconds_per_step: float


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One optimizer on one task. ``failure`` is empty, or says in one line why there are no
    results.

    Attributes:
        chosen: metric -> index into ``runs`` of the setting whose result is reported for it.
        tuned: the settings tried, each with its scores on the tuning seeds.
        notes: what a person should know (extensions of the grid).
        gradients_per_step: gradient evaluations per update.
        parameters: of the task; state_floats: numbers of optimizer state per parameter.
    """

    task: str
    optimizer: str
    learned: bool
    runs: tuple[Runs, ...] = ()
    chosen: dict[str, int] = field(default_factory=dict)
    tuned: tuple[dict[str, Any], ...] = ()
    notes: tuple[str, ...] = ()
    gradients_per_step: float = 1.0
    parameters: int = 0
    state_floats: float = 0.0
    failure: str = ""

    def of(self, metric: str) -> Runs | None:
        """The runs that are reported for ``metric``; None if it was not measured."""
        return self.runs[self.chosen[metric]] if metric in self.chosen else None

    def values(self, metric: str) -> Array | None:
        """``[S]`` values of ``metric``, from its own best setting."""
        runs = self.of(metric)
        return None if runs is None else runs.metrics[metric]


@dataclass(frozen=True, kw_only=True)
class Result:
    """A whole evaluation. ``arms`` by (task, optimizer), tasks outermost.

    Attributes:
        tasks: names in their order.
        learned: labels of what is compared with the ``baselines``, some of which may be among them.
        files: label -> the file a learned optimizer came from.
        provenance: versions, command, commit, time.
    """

    tasks: tuple[str, ...]
    learned: tuple[str, ...]
    baselines: tuple[str, ...]
    arms: tuple[Arm, ...]
    steps: int
    tuning_seeds: tuple[int, ...]
    report_seeds: tuple[int, ...]
    files: dict[str, str] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    def arm(self, task: str, optimizer: str) -> Arm:
        return next(arm for arm in self.arms if (arm.task, arm.optimizer) == (task, optimizer))

    @property
    def optimizers(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.learned + self.baselines))

    @property
    def failures(self) -> list[Arm]:
        return [arm for arm in self.arms if arm.failure]


def to_json(result: Result, derived: dict[str, Any] | None = None) -> str:
    """Strict JSON: what is not finite is null."""
    return FILE.write(_plain(asdict(result)), _plain(derived))


def from_json(text: str, source: str = "the file") -> Result:
    """The result again; raises UserError. ``source`` names it in errors."""
    return FILE.read(text, source, _result)


def _result(data: dict[str, Any]) -> Result:
    arms = []
    for arm in data["arms"]:
        runs = tuple(_runs(run) for run in arm["runs"])
        fixed = {"runs": runs, "tuned": tuple(arm["tuned"]), "notes": tuple(arm["notes"])}
        arms.append(Arm(**{**arm, **fixed}))
    sequences = ("tasks", "learned", "baselines", "tuning_seeds", "report_seeds")
    fields = {key: value for key, value in data.items() if key != "arms"}
    return Result(arms=tuple(arms), **{**fields, **{key: tuple(fields[key]) for key in sequences}})


def _runs(run: dict[str, Any]) -> Runs:
    return Runs(
        setting=run["setting"],
        metrics={
            name: _array(x, np.nan if "accuracy" in name else np.inf)
            for name, x in run["metrics"].items()
        },
        curves=_array(run["curves"], np.inf).astype(np.float32),
        diverged=np.asarray(run["diverged"], dtype=bool),
        seconds_per_step=math.nan if run["seconds_per_step"] is None else run["seconds_per_step"],
    )


def _array(values: Sequence[Any], missing: float) -> Array:
    x = np.array(values, dtype=np.float64)  # None becomes nan
    return np.where(np.isnan(x), missing, x)


def _plain(value: Any) -> Any:
    """JSON values: arrays as lists, float32 with the nine digits it has, null for what is not
    finite.
    """
    if isinstance(value, np.ndarray):
        if value.ndim != 1:
            return [_plain(x) for x in value]
        if value.dtype == np.float32:
            return [float(f"{x:.9g}") if math.isfinite(x) else None for x in value.tolist()]
        return [_plain(x) for x in value.tolist()]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _plain(x) for key, x in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(x) for x in value]
    return value
