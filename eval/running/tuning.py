"""Baselines at their best: the grid on tuning seeds, its extension at the edges, and the choice for
each metric.

Tuning sees the training split and the validation split, never the test split: `SPLITS` is all that
its cells measure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lo_framework.eval.baselines import Setting, grid_of, make_baseline, make_thetas, setting_label
from lo_framework.eval.baselines.registry import TunedOptimizer, setting_of
from lo_framework.eval.running.cells import Failure, plan_cells
from lo_framework.eval.running.pool import Plan
from lo_framework.eval.running.protocol import METRICS, Metric
from lo_framework.eval.statistics import Array
from lo_framework.learned.base import LearnedOptimizer
from lo_framework.spec import UserError, parse_spec

SPLITS = ("train", "valid")
MAX_EXTENSIONS = 2


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The settings over which a baseline is tuned. ``fixed``: values that the spec gives and that
    are therefore not tuned.
    """

    settings: tuple[Setting, ...]
    fixed: tuple[str, ...]

    @property
    def has_choice(self) -> bool:
        """Whether there is more than one setting to try, extensions included."""
        return len(self.settings) > 1 or ("lr" in self.settings[0] and "lr" not in self.fixed)


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """A tuned baseline on one task.

    Attributes:
        settings: all that were tried, G of them, extensions last.
        scores: name -> ``[G, S]`` on the tuning seeds; none where there was nothing to choose.
        chosen: metric -> index of its best setting.
        notes: what happened at the edges, for people.
    """

    settings: tuple[Setting, ...]
    scores: dict[str, Array]
    chosen: dict[str, int]
    notes: tuple[str, ...]

    def records(self) -> tuple[dict[str, Any], ...]:
        """Every setting that was tried, with its scores, as it stands in files."""
        return tuple(
            {
                "setting": setting,
                "label": setting_label(setting),
                "best_for": [key for key, chosen in self.chosen.items() if chosen == i],
                "scores": {name: values[i].tolist() for name, values in self.scores.items()},
            }
            for i, setting in enumerate(self.settings)
        )


def make_grid(spec: str, size: int | None = None) -> Grid:
    """The baseline's own grid without what ``spec`` fixes: ``"adamw:lr=0.01"`` is tuned over
    schedules only.

    Args:
        size: that many learning rates instead, log-spaced over the same range.

    Raises:
        UserError: unknown baseline or option, or a size below 1.
    """
    name, options = parse_spec(spec)
    optimizer = make_baseline(spec)
    if isinstance(optimizer, TunedOptimizer) and optimizer.untuned:
        setting = {key: _rounded(x) for key, x in setting_of(optimizer.theta()).items()}
        return Grid(settings=(setting,), fixed=tuple(setting))
    config = optimizer.config
    settings = [dict(setting) for setting in grid_of(name)]
    if size is not None:
        settings = _resized(settings, size)
    fixed = tuple(key for key in options if any(key in setting for setting in settings))
    for setting in settings:
        setting.update({key: float(getattr(config, key)) for key in fixed})
    unique = [setting for i, setting in enumerate(settings) if setting not in settings[:i]]
    return Grid(settings=tuple(unique), fixed=fixed)


def _resized(settings: list[Setting], size: int) -> list[Setting]:
    if size < 1:
        raise UserError(f"--grid-size: expected at least 1 learning rate, got {size}")
    if not all("lr" in setting for setting in settings):
        return settings
    lrs = [setting["lr"] for setting in settings]
    middle = math.sqrt(min(lrs) * max(lrs))
    sizes = np.geomspace(min(lrs), max(lrs), size) if size > 1 else [middle]
    others: list[Setting] = []
    for setting in settings:
        if _rest(setting) not in others:
            others.append(_rest(setting))
    return [{"lr": _rounded(lr), **rest} for rest in others for lr in sizes]


def tune(
    task: str,
    label: str,
    optimizer: LearnedOptimizer,
    grid: Grid,
    seeds: Sequence[int],
    steps: int,
    *,
    metrics: Sequence[Metric] = METRICS,
    last: int = 0,
) -> Plan[Tuning | Failure]:
    """Try the grid; extend it by one learning rate, at most twice, where a best setting is at its
    edge; choose for each of ``metrics``; ``last`` is that of the cells. A grid without a choice
    costs no run.
    """
    if not grid.has_choice:
        only = {metric.key: 0 for metric in metrics}
        return Tuning(settings=grid.settings, scores={}, chosen=only, notes=())
    settings: list[Setting] = []
    scores: dict[str, Array] = {}
    chosen: dict[str, int] = {}
    fresh, extended = list(grid.settings), []
    for extension in range(MAX_EXTENSIONS + 1):
        thetas = make_thetas(optimizer, fresh)
        outcomes = yield plan_cells(task, label, thetas, seeds, steps, SPLITS, last)
        for outcome in outcomes:
            if isinstance(outcome, Failure):
                return outcome
            for name, values in outcome.metrics.items():
                scores[name] = np.concatenate([scores[name], values]) if name in scores else values
        settings += fresh
        chosen = {m.key: best(scores, m) for m in metrics if m.chosen_by in scores}
        fresh = [] if "lr" in grid.fixed else beyond(settings, chosen)
        if not fresh or extension == MAX_EXTENSIONS:
            break
        extended += [setting_label(setting) for setting in fresh]
    notes = [f"grid extended at its edge by {', '.join(extended)}"] if extended else []
    if fresh:
        notes.append(f"the best setting is still at the edge after {MAX_EXTENSIONS} extensions")
    return Tuning(settings=tuple(settings), scores=scores, chosen=chosen, notes=tuple(notes))


def best(scores: dict[str, Array], metric: Metric) -> int:
    """The setting with the best mean over tuning seeds; one that diverged on any seed only if all
    did.
    """

    def losses(name: str) -> Array:
        values = (
            scores[name] if metric.lower_is_better or name != metric.chosen_by else -scores[name]
        )
        return np.where(np.isfinite(values), values, np.inf)

    own, ties = losses(metric.chosen_by), losses(metric.ties)
    keys = [
        (own[i].mean(), np.isinf(own[i]).sum(), ties[i].mean(), np.sort(own[i]).tolist())
        for i in range(len(own))
    ]
    return min(range(len(keys)), key=keys.__getitem__)


def beyond(settings: Sequence[Setting], chosen: dict[str, int]) -> list[Setting]:
    """The next learning rate outwards for every chosen setting that has the largest or smallest one
    of its kind.

    The step outwards is the ratio of the two learning rates at that edge.
    """
    fresh: list[Setting] = []
    for index in sorted(set(chosen.values())):
        setting = settings[index]
        if "lr" not in setting:
            continue
        rest = _rest(setting)
        lrs = sorted(other["lr"] for other in settings if _rest(other) == rest)
        for edge, inner in ((0, 1), (-1, -2)):
            if setting["lr"] == lrs[edge]:
                ratio = lrs[edge] / lrs[inner] if len(lrs) > 1 else (1 / 3 if edge == 0 else 3.0)
                outer = {"lr": _rounded(lrs[edge] * ratio), **rest}
                if outer not in fresh:
                    fresh.append(outer)
    return fresh


def _rest(setting: Setting) -> Setting:
    """All but the learning rate."""
    return {key: value for key, value in setting.items() if key != "lr"}


def _rounded(lr: float) -> float:
    return float(f"{lr:.3g}")
