"""The report of `eval score`: a line per optimizer over all problems, a table per axis, pairs of
optimizers, and one picture: performance profiles and a bar per problem.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from lo_framework.eval.baselines import setting_label
from lo_framework.eval.report import numbers
from lo_framework.eval.report.base import Report
from lo_framework.eval.report.drawing import (
    canvas,
    label,
    legend,
    line_handle,
    log_labels,
    looks,
    open_frame,
    png,
)
from lo_framework.eval.report.table import Table
from lo_framework.eval.report.text import table_of_values
from lo_framework.eval.score.measures import LAST, WORST, Scored, over_problems, ratios
from lo_framework.eval.statistics import Array, Estimate, median, probability_of_improvement
from lo_framework.eval.studies.score import FILE, Scores

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLES = {
    "speed_up": "speed-up",
    "final": "final loss",
    "test": "test loss",
    "early": "early / first",
    "spike": "early spike",
}
AVERAGED = ("speed_up", "final", "test")
SHOWN = (0.25, 4.0)  # ratios of the picture; what is beyond is drawn at its edge
TICKS = (0.25, 0.5, 0.7, 1.0, 1.4, 2.0, 4.0)


class ScoreReport(Report[Scores]):
    file, title = FILE, "Score on held-out problems"

    def __init__(self, result: Scores) -> None:
        super().__init__(result)
        self.ratios = {
            (arm.task, arm.optimizer): ratios(arm, result.reference(arm.task))
            for arm in result.arms
        }
        self.axis = {problem.name: problem.axis for problem in result.problems}

    def files(self) -> Iterator[tuple[str, str | bytes]]:
        yield "score.csv", self.csv()
        yield "score.md", self.markdown()
        if self.ratios:
            yield "score.png", png(self.draw(), 150)

    def csv(self) -> str:
        """Return a row for each problem, optimizer and seed."""
        headers = [
            "problem",
            "axis",
            "optimizer",
            "seed",
            *WORST,
            "last_loss",
            "test_loss",
            "steps",
        ]
        rows = []
        for arm in self.result.arms:
            found = self.ratios[arm.task, arm.optimizer]
            for i, seed in enumerate(self.result.report_seeds):
                row = [arm.task, self.axis[arm.task], arm.optimizer, seed]
                row += [float(x[i]) for x in found.values()]
                own = [arm.metrics.get(key) for key in ("last_loss", "test_loss", "steps")]
                rows.append([*row, *(None if x is None else float(x[i]) for x in own)])
        return table_of_values(headers, rows)

    def derived(self) -> dict[str, Any]:
        """Return the aggregates and every problem's ratios."""
        return {
            "overall": {
                optimizer: {
                    key: [x.value, x.low, x.high]
                    for key in WORST
                    if (x := self.overall(optimizer, key)) is not None
                }
                for optimizer in self.result.optimizers
            },
            "problems": [
                {"problem": task, "optimizer": optimizer}
                | {key: self.value(task, optimizer, key) for key in WORST}
                for task, optimizer in self.ratios
            ],
        }

    def value(self, task: str, optimizer: str, key: str) -> float:
        """Return a problem's ratio: the median over seeds; of a spike, the worst seed's."""
        found = self.ratios[task, optimizer][key]
        return float(found.max() if key == "spike" else median(found))

    def overall(self, optimizer: str, key: str, axis: str | None = None) -> Estimate | None:
        """Return the interquartile mean over the problems of ``axis``, or over all."""
        rows = [
            self.ratios[task, optimizer][key]
            for task in self.result.tasks
            if axis in (None, self.axis[task]) and (task, optimizer) in self.ratios
        ]
        return over_problems(rows) if rows else None

    def heading(self) -> list[str]:
        result = self.result
        return [
            f"{len(result.tasks)} problems, {numbers.seeds(result.report_seeds)}; "
            "relative to AdamW, tuned on each problem"
        ]

    def tables(self) -> list[Table]:
        """Return everything over all problems, then axis by axis."""
        if not self.result.arms:
            return [self._adamw()]
        found = [self._overall(), self._pairs(), self._axes()]
        found += [self._axis(axis) for axis in dict.fromkeys(self.axis.values())]
        return [table for table in found if table]

    def summary(self) -> list[str]:
        """Return a line for each optimizer."""
        lines = []
        for optimizer in self.result.optimizers if self.ratios else ():
            values = {
                key: {task: self.value(task, optimizer, key) for task in self.result.tasks}
                for key in WORST
            }
            final, spike = values["final"], values["spike"]
            worst = max(final, key=final.__getitem__)
            seeds = sum(int(arm.diverged.sum()) for arm in self._arms(optimizer))
            lines.append(
                f"score {optimizer}: speed-up {self.overall(optimizer, 'speed_up')}, "
                f"final loss {self.overall(optimizer, 'final')}, "
                f"test loss {self.overall(optimizer, 'test')}, "
                f"worst {numbers.ratio(final[worst])} ({worst}), "
                f"early spike {numbers.ratio(max(spike.values()))}, "
                f"{seeds} runs diverged, {len(final)} problems"
            )
        return lines

    def notes(self) -> list[str]:
        return [
            "loss: the mean of the last 10 training batches; each number: the median over seeds of "
            "the ratio to tuned AdamW on the same seed",
            "speed-up: AdamW's first step at or below its own last loss, over the steps to that "
            "loss; never: 0",
            "early / first: the worst batch of the first tenth over the first one; early spike: "
            "over the larger of the first one and AdamW's worst, on the worst seed",
            "over problems: interquartile means with 95% bootstrap intervals (seeds resampled "
            "within problems); a failed or diverged run counts as infinitely bad",
        ]

    def worked(self) -> bool:
        return len(self.result.failures) < len(self.result.arms) + len(self.result.adamw)

    def _arms(self, optimizer: str) -> list[Scored]:
        return [arm for arm in self.result.arms if arm.optimizer == optimizer]

    def _overall(self) -> Table:
        titles = [TITLES[key] for key in AVERAGED]
        title = "All problems: interquartile means"
        table = Table("optimizer", *titles, "worst final", "at or below 1", title=title)
        for optimizer in self.result.optimizers:
            final = [self.value(task, optimizer, "final") for task in self.result.tasks]
            means = [self.overall(optimizer, key) for key in AVERAGED]
            table.add(
                optimizer,
                *means,
                numbers.ratio(max(final)),
                f"{sum(x <= 1 for x in final)} of {len(final)}",
            )
        return table

    def _pairs(self) -> Table:
        """Every learned optimizer against every baseline: ratios of last losses, paired."""
        title = "Final loss against baselines, on the same problem and seed"
        table = Table("optimizer", "against", "ratio [95%]", "wins [95%]", title=title)
        for optimizer in self.result.learned:
            for baseline in self.result.baselines:
                a, b = (self._losses(x) for x in (optimizer, baseline))
                with np.errstate(invalid="ignore", divide="ignore"):
                    quotient = np.where(a == b, 1.0, a / b)
                ratio = over_problems([*np.nan_to_num(quotient, nan=np.inf, posinf=np.inf)])
                table.add(optimizer, baseline, ratio, probability_of_improvement(a, b))
        return table

    def _losses(self, optimizer: str) -> Array:
        """Return last losses ``[problems, S]``, infinite where there are none."""
        seeds = len(self.result.report_seeds)
        none = np.full(seeds, np.inf)
        return np.stack([arm.metrics.get(LAST.key, none) for arm in self._arms(optimizer)])

    def _axes(self) -> Table:
        titles = [TITLES[key] for key in AVERAGED]
        title = "By axis: interquartile means"
        table = Table("axis", "problems", "optimizer", *titles, title=title)
        for axis in dict.fromkeys(self.axis.values()):
            table.rule()
            first: list[Any] = [axis, [*self.axis.values()].count(axis)]
            for optimizer in self.result.optimizers:
                means = [self.overall(optimizer, key, axis) for key in AVERAGED]
                table.add(*first, optimizer, *(None if x is None else x.value for x in means))
                first = ["", ""]
        return table

    def _axis(self, axis: str) -> Table:
        table = Table("problem", "optimizer", *TITLES.values(), title=f"Axis: {axis}")
        for problem in self.result.problems:
            if problem.axis != axis or problem.name not in self.result.tasks:
                continue
            table.rule()
            first = f"{problem.name}, {problem.steps} steps"
            for optimizer in self.result.optimizers:
                if self.result.arm(problem.name, optimizer).failure:
                    cells: list[Any] = ["FAILED", *[None] * (len(TITLES) - 1)]
                else:
                    values = {k: self.value(problem.name, optimizer, k) for k in TITLES}
                    cells = [numbers.ratio(x) for x in values.values()]
                table.add(first, optimizer, *cells)
                first = ""
        return table

    def _adamw(self) -> Table:
        """Tuned AdamW itself: what its results are."""
        titles = ("axis", "setting", "first loss", "last loss", "steps to it", "test loss")
        table = Table("problem", *titles, title="Tuned AdamW: medians over seeds")
        for one in self.result.adamw:
            if not one.failure:
                keys = ("first_loss", "last_loss", "steps", "test_loss")
                values = [float(median(one.metrics[key])) for key in keys]
                setting = setting_label(one.settings[LAST.key])
                table.add(one.task, self.axis[one.task], setting, *values)
        return table

    def draw(self) -> Figure:
        """Draw profiles of final loss and speed-up, and a bar per problem and optimizer."""
        tasks, optimizers = self.result.tasks, self.result.optimizers
        height = 1.6 + 0.16 * len(tasks) * (1 + len(optimizers))
        figure, (profile, final, speed) = canvas(3, 3, (4.33, max(4.0, height)), (0.0, 0.0))
        look = looks(optimizers)
        low, high = SHOWN
        grid = np.geomspace(low, high, 200)
        places = np.arange(len(tasks))
        thick = 0.8 / len(optimizers)
        for i, (optimizer, own) in enumerate(look.items()):
            values = {
                key: np.array([self.value(task, optimizer, key) for task in tasks])
                for key in ("final", "speed_up")
            }
            share = [(values["final"] <= x).mean() for x in grid]
            profile.plot(grid, share, color=own.colour, dashes=own.dashes or (None, None))
            at = places + thick * (i - (len(optimizers) - 1) / 2)
            for axes, key in ((final, "final"), (speed, "speed_up")):
                shown = np.clip(values[key], low, high)
                bars = dict(color=own.colour, hatch="///" if own.dashes else "", linewidth=0.5)
                axes.barh(at, shown - 1, thick, left=1, edgecolor="white", zorder=2, **bars)
        for axes in (profile, final, speed):
            axes.set_xscale("log")
            axes.set_xlim(low, high)
            axes.set_xticks(TICKS)
            log_labels(axes.xaxis)
            axes.axvline(1.0, color="black", linewidth=0.8, zorder=3)
        for axes in (final, speed):
            axes.set_ylim(len(tasks) - 0.5, -0.5)
            axes.set_yticks(places, [label(x) for x in tasks] if axes is final else [], fontsize=8)
        profile.set_ylim(0, 1.02)
        open_frame(profile, "share of problems with at most this final loss")
        open_frame(final, "final loss / AdamW's (left is better)")
        open_frame(speed, "speed-up over AdamW (right is better)")
        legend(figure, [line_handle(label(name), own) for name, own in look.items()])
        return figure
