"""The report of `eval score`: a line per optimizer over all problems, a table per axis, pairs of
optimizers, and pictures (`score_pictures`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from lo_framework.eval.baselines import setting_label
from lo_framework.eval.report import numbers
from lo_framework.eval.report.base import Report
from lo_framework.eval.report.drawing import png
from lo_framework.eval.report.page import Section, Term, picture
from lo_framework.eval.report.score_pictures import CAPTIONS, draw
from lo_framework.eval.report.table import Table
from lo_framework.eval.report.text import table_of_values
from lo_framework.eval.score.measures import LAST, WORST, Scored, over_problems, ratios
from lo_framework.eval.statistics import Array, Estimate, median, probability_of_improvement
from lo_framework.eval.studies.score import FILE, Scores

TITLES = {
    "speed_up": "speed-up",
    "final": "final loss",
    "test": "test loss",
    "early": "early / first",
    "spike": "early spike",
}
AVERAGED = ("speed_up", "final", "test")
WORDS = (
    Term(
        "speed-up",
        "tuned AdamW's first step at or below its own last loss, over the steps to that loss; "
        "above 1 is faster, never: 0",
        first=True,
    ),
    Term(
        "final loss",
        "the mean of the last 10 training batches, over tuned AdamW's on the same seed; below 1 "
        "is better",
        first=True,
    ),
    Term("test loss", "on the test split after the last step, over tuned AdamW's", first=True),
    Term(
        "early spike",
        "the worst batch of the first tenth, over the larger of the first one and AdamW's worst, "
        "on the worst seed",
        first=True,
    ),
    Term("worst", "the largest final loss of a problem", True, ("worst final",)),
    Term(
        "over problems",
        "interquartile means with 95% bootstrap intervals (seeds resampled within problems); a "
        "problem's number is the median over its seeds, and a failed or diverged run counts as "
        "infinitely bad",
        first=True,
    ),
    Term("early / first", "the worst batch of the first tenth over the first one"),
    Term("at or below 1", "problems whose final loss is no larger than tuned AdamW's"),
    Term("ratio [95%]", "of final losses, interquartile mean over problems"),
    Term("wins [95%]", "share of problems and seeds with the lower final loss"),
    Term("axis", "in what a problem is unlike those that optimizers are meta-trained on"),
)


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
        yield "score.html", self.html()
        if self.ratios:
            yield "score.png", png(draw(self.result, self.value), 150)

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

    def sections(self) -> list[Section]:
        """Return all problems with the pictures, then a table for each axis."""
        if not self.result.arms:
            return [Section("Tuned AdamW", [self._adamw()])]
        pictures = [
            part
            for name, caption in CAPTIONS.items()
            for part in picture(draw(self.result, self.value, (name,)), caption)
        ]
        tables = [table for table in (self._pairs(), self._axes()) if table]
        axes = [self._axis(axis) for axis in dict.fromkeys(self.axis.values())]
        return [
            Section("All problems", [self._overall(), *pictures, *tables]),
            Section("Each problem", [table for table in axes if table]),
        ]

    def cautions(self) -> list[str]:
        """Say so where the seeds say little of a single problem."""
        seeds = len(self.result.report_seeds)
        if seeds == 1:
            return ["1 seed: there are no intervals."]
        line = numbers.few_seeds(seeds, 1)
        own = "On a single problem nothing is certain, then; the sums over problems have intervals."
        return [f"{line} {own}"] if line else []

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

    def findings(self) -> list[str]:
        return [line.removeprefix("score ") for line in self.summary()]

    def words(self) -> list[Term]:
        return [*WORDS] if self.result.arms else []

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
        table = Table("optimizer", "against", "ratio [95%]", "wins [95%]", title=title, words=2)
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
        table = Table("axis", "problems", "optimizer", *titles, title=title, words=3)
        for axis in dict.fromkeys(self.axis.values()):
            table.rule()
            first: list[Any] = [axis, [*self.axis.values()].count(axis)]
            for optimizer in self.result.optimizers:
                means = [self.overall(optimizer, key, axis) for key in AVERAGED]
                table.add(*first, optimizer, *(None if x is None else x.value for x in means))
                first = ["", ""]
        return table

    def _axis(self, axis: str) -> Table:
        title = f"Axis: {axis}"
        table = Table("problem", "optimizer", *TITLES.values(), title=title, words=2)
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
        table = Table("problem", *titles, title="Tuned AdamW: medians over seeds", words=3)
        for one in self.result.adamw:
            if not one.failure:
                keys = ("first_loss", "last_loss", "steps", "test_loss")
                values = [float(median(one.metrics[key])) for key in keys]
                setting = setting_label(one.settings[LAST.key])
                table.add(one.task, self.axis[one.task], setting, *values)
        return table
