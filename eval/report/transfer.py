"""The report of `eval transfer` and `eval compare`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import chain, groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from lo_framework.eval.baselines import setting_label
from lo_framework.eval.report import numbers
from lo_framework.eval.report.base import Report
from lo_framework.eval.report.costs import costs_table, costs_words
from lo_framework.eval.report.curves import Curve, Panel, draw_curves
from lo_framework.eval.report.drawing import png
from lo_framework.eval.report.page import Part, Section, Term, picture
from lo_framework.eval.report.ratios import draw_forest, ratios
from lo_framework.eval.report.table import Table
from lo_framework.eval.report.text import file_names
from lo_framework.eval.running.protocol import BY_KEY, METRICS, smoothing_width
from lo_framework.eval.studies.comparison import (
    BETTER,
    SAME,
    WORSE,
    Comparison,
    aggregate,
    compare,
    matched_steps,
    reference_of,
)
from lo_framework.eval.studies.result import FILE, Arm, Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MANY = 8  # optimizers: more of them also get a table of ratios, and a row each in place of a curve
PANELS = 6  # more tasks than this also get a figure each
ON_A_PAGE = 6000  # points of all curves on it
LED_BY = ("final_loss", "test_loss")  # what the page opens with
OWN = ("accuracy", "mae", "perplexity")  # what a task measures beside its loss
# No counts of the optimizer's own.
MEASURED = ("valid_loss", *(f"{split}_{name}" for split in ("train", "valid") for name in OWN))

CURVES = (
    "Training loss of batches; of baselines at their setting for the mean loss. It is a running "
    "mean where the legend says so, and the legend counts what diverged."
)
FOREST = "Mean of each optimizer in parts of the reference's, with 95% intervals; left is better."
BEST_SETTING = (
    "a baseline's number is from the setting that was best for that metric on the tuning seeds; "
    "settings for test loss and test accuracy are chosen by validation data, and test data choose "
    "nothing"
)
ONE_SETTING = (
    "all numbers of a baseline are from one setting, the one with the best {} on the tuning seeds; "
    "test data choose nothing"
)
BESIDE_BASELINES = (
    Term(
        "better, worse",
        "the 95% interval of the mean difference leaves zero out (that of how often it is better, "
        "where a loss is not finite); no correction for many tests",
        True,
        ("verdict",),
    ),
    Term(
        "difference",
        "of the two means, paired by seed: both start from the same parameters and see the same "
        "batches",
        False,
        ("difference [95%]",),
    ),
    Term("ratio", "of the two means: below 1x is a lower loss", False, ("ratio [95%]",)),
    Term("wins", "seeds on which it is better than the other; a tie counts one half"),
)


class TransferReport(Report[Result]):
    file, title = FILE, "Transfer"

    def derived(self) -> dict[str, Any]:
        result = self.result
        return {
            "comparisons": [asdict(c) for c in compare(result)],
            "aggregates": [asdict(a) for a in aggregate(result)],
            "steps_to_reference": {
                task: {label: asdict(s) for label, s in matched_steps(result, task).items()}
                for task in result.tasks
            },
        }

    def files(self) -> Iterator[tuple[str, str | bytes]]:
        result = self.result
        yield "transfer.md", self.markdown()
        yield "transfer.html", self.html()
        shown = panels(result)
        if not shown:
            return
        if len(result.optimizers) > MANY and (figure := draw_forest(result)) is not None:
            yield "arms.png", png(figure, 120)
            return
        figures = {"curves.png": shown}
        if len(shown) > PANELS:
            names = file_names("curves", [panel.title for panel in shown])
            figures |= {names[panel.title]: [panel] for panel in shown}
        title = f"{result.steps} steps; baselines at their best setting for the mean loss"
        for name, some in figures.items():
            yield name, png(self._curves(some, title=title), 150)

    def _curves(self, some: list[Panel], **options: Any) -> Figure:
        smooth = smoothing_width(self.result.steps)
        return draw_curves(some, ylabel="training loss (minibatch)", smooth=smooth, **options)

    def heading(self) -> list[str]:
        result = self.result
        seeds = numbers.seeds(result.report_seeds)
        lines = [f"{result.steps} steps, {seeds}, the same for every optimizer"]
        if result.baselines:
            tuned = numbers.seeds(result.tuning_seeds)
            lines.append(f"baselines tuned on each task with {tuned}, learning rate x schedule")
        return lines + [f"{label}: {file}" for label, file in result.files.items()]

    def tables(self) -> list[Table]:
        """Show many optimizers at a glance, then each task, then the aggregate over tasks."""
        many = ratios([self.result]) if len(self.result.optimizers) > MANY else []
        return [*many, *chain(*self._by_task().values()), *_aggregates(self.result)]

    def _by_task(self) -> dict[str, list[Table]]:
        """Return what was reached and what differs, for each task that has numbers."""
        result, tables = self.result, {}
        compared = {task: [*group] for task, group in groupby(compare(result), lambda c: c.task)}
        for task in result.tasks:
            arms = [result.arm(task, label) for label in result.optimizers]
            if not all(arm.failure for arm in arms):
                tables[task] = [_reached(result, task, arms)]
                tables[task] += [_differences(compared[task])] if task in compared else []
                costs = costs_table(result, task)
                tables[task] += [costs] if costs else []
        return tables

    def sections(self) -> list[Section]:
        """Return all tasks together, then each with its curves."""
        result, many = self.result, len(self.result.optimizers) > MANY
        together: list[Part] = [*_aggregates(result)]
        if many:
            forest = draw_forest(result)
            together += [*picture(forest, FOREST), *ratios([result])]
        found = [Section("All tasks", together)] if together else []
        drawn = {panel.title: panel for panel in panels(result)}
        count = sum(len(panel.curves) for panel in drawn.values())
        points = max(40, min(160, ON_A_PAGE // max(1, count)))
        for task, tables in self._by_task().items():
            parts: list[Part] = [*tables]
            if task in drawn and not many:
                parts[1:1] = picture(self._curves([drawn[task]], points=points), CURVES)
            found.append(Section(task, parts))
        return found

    def findings(self) -> list[str]:
        """Say what came out over all tasks, or on the only one; then how often it was so."""
        lines = [
            f"{a.optimizer}, {BY_KEY[a.metric].title}: {a.ratio} times {a.reference}'s over "
            f"{a.tasks} tasks: {a.verdict}"
            for a in aggregate(self.result)
            if a.optimizer in self.result.learned and a.metric in LED_BY
        ]
        lines = lines or [
            f"{c.task}, {c.learned}, {BY_KEY[c.metric].title}: {numbers.ratio(c.ratio) or 'no'} "
            f"times {c.baseline}'s: {c.verdict}"
            for c in compare(self.result)
            if c.baseline == reference_of(self.result) and c.metric in LED_BY
        ]
        return [*lines, *self.summary()] or ["Nothing was compared."]

    def cautions(self) -> list[str]:
        """Say so where the seeds are too few for what a table asks of them."""
        per_task = Counter(c.task for c in compare(self.result))
        seeds = len(self.result.report_seeds)
        line = numbers.few_seeds(seeds, max(per_task.values(), default=0))
        own = "The verdicts here rest on Student's t, which takes differences to be normal."
        return [f"{line} {own}"] if line else []

    def summary(self) -> list[str]:
        """Count how often each learned optimizer was better or worse; nothing for one task."""
        result, lines = self.result, []
        pairs = len(result.learned) * len(result.baselines)
        baselines = result.baselines if pairs <= 12 else result.baselines[:1]
        for learned in result.learned if len(result.tasks) > 1 else ():
            for baseline in baselines:
                verdicts = [
                    c.verdict
                    for c in compare(result)
                    if (c.learned, c.baseline) == (learned, baseline)
                ]
                counts = [f"{word} in {verdicts.count(word)}" for word in (BETTER, WORSE, SAME)]
                if verdicts:
                    of = f"of {len(verdicts)} comparisons"
                    lines.append(f"{learned} against {baseline}: {', '.join(counts)} {of}")
        return lines

    def worked(self) -> bool:
        return len(self.result.failures) < len(self.result.arms)

    def words(self) -> list[Term]:
        result = self.result
        reference, width = reference_of(result), smoothing_width(result.steps)
        words = [
            Term("mean loss", "training batches, before each update", first=True),
            Term("final loss", "full training split, after the last update", first=True),
            Term(
                "test loss",
                "full test split, after the last update",
                True,
                ("test acc.", "test ppl", "test MAE"),
            ),
            Term("±", "half of the 95% interval of the mean over seeds (Student's t)"),
        ]
        if any(arm.learned and arm.tuned for arm in result.arms):
            meaning = (
                "the learned optimizer's whole update times one number, which is chosen as a "
                "baseline's setting is; its row without is zero-shot"
            )
            words.append(Term("step tuned", meaning, first=True))
        if result.baselines:
            meaning = ONE_SETTING.format(result.chosen_by) if result.chosen_by else BEST_SETTING
            words += [Term("best setting", meaning), *BESIDE_BASELINES]
        if reference is not None:
            meaning = (
                f"median batches to a training loss (mean of {width}) <= {reference}'s last; "
                "never reached: counted"
            )
            words.append(Term(f"steps to {reference}", meaning))
        return [*words, *costs_words(result)]


def panels(result: Result) -> list[Panel]:
    """Return one per task: training loss of every optimizer, of baselines at the setting with the
    best mean loss.
    """
    # Learned ones last, so that they are drawn on top.
    labels = dict.fromkeys(result.baselines + result.learned)
    by_task = {
        task: [
            Curve(label=label, steps=np.arange(result.steps), values=runs.curves)
            for label in labels
            if (runs := result.arm(task, label).of("mean_loss")) is not None
        ]
        for task in result.tasks
    }
    return [Panel(title=task, curves=curves) for task, curves in by_task.items() if curves]


def _reached(result: Result, task: str, arms: list[Arm]) -> Table:
    metrics = [m for m in METRICS if any(m.key in arm.chosen for arm in arms)]
    steps = matched_steps(result, task)
    headers = ["optimizer", *(m.title for m in metrics)]
    headers += [f"steps to {reference_of(result)}"] * bool(steps)
    headers += ["diverged", "ms/step", "grads", "state"]
    parameters = max(arm.parameters for arm in arms)
    about = [arm.data for arm in arms if arm.data][:1]
    table = Table(
        *headers, title=f"{task} ({parameters:,} parameters)", notes=(*about, *_settings(arms))
    )
    for arm in arms:
        if arm.failure:
            table.failed(arm.optimizer)
            continue
        runs = arm.of("final_loss") or arm.runs[0]
        cells: list[object] = [
            None if (values := arm.values(metric.key)) is None else numbers.mean_of(values, metric)
            for metric in metrics
        ]
        cells += [steps.get(arm.optimizer)] * bool(steps)
        seconds = runs.seconds_per_step
        cells += [
            numbers.count_of(runs.diverged),
            None if math.isnan(seconds) else f"{1e3 * seconds:.2g}",
            f"{arm.gradients_per_step:.3g}",
            f"{arm.state_floats:.1f}",
        ]
        table.add(arm.optimizer, *cells)
    return table


def _settings(arms: Iterable[Arm]) -> list[str]:
    """Name the settings that the numbers of what was tuned come from, and what tuning had to do for
    them.
    """
    lines = []
    for arm in arms:
        if arm.failure or (arm.learned and not arm.tuned):
            continue
        words = []
        for i, runs in enumerate(arm.runs):
            titles = [BY_KEY[key].title for key, chosen in arm.chosen.items() if chosen == i]
            every = "every metric" if len(arm.runs) == 1 else ", ".join(titles)
            words.append(f"{setting_label(runs.setting)} ({every})")
        lines.append(f"{arm.optimizer}: {'; '.join(words)}")
        counts = [
            f"{name} {values.mean():.3g}"
            for name, values in (arm.of("final_loss") or arm.runs[0]).metrics.items()
            if name not in (*BY_KEY, *MEASURED)
        ]
        below = [f"counted (mean): {', '.join(counts)}"] if counts else []
        lines += [f"{' ' * len(arm.optimizer)}  {line}" for line in (*below, *arm.notes)]
    return lines


def _differences(comparisons: list[Comparison]) -> Table:
    headers = ("optimizer", "against", "metric", "difference [95%]", "ratio", "wins", "verdict")
    table = Table(*headers, words=3)
    for pair, group in groupby(comparisons, lambda c: (c.learned, c.baseline)):
        table.rule()
        for c in group:
            metric, wins = BY_KEY[c.metric], c.improvement
            table.add(
                *pair,
                metric.title,
                numbers.difference(c.difference, metric),
                numbers.ratio(c.ratio),
                f"{wins.value * wins.n:g} of {wins.n}",
                c.verdict,
            )
            pair = ("", "")
    return table


def _aggregates(result: Result) -> list[Table]:
    aggregates = aggregate(result)
    if not aggregates:
        return []
    count = max(a.tasks for a in aggregates)
    title = (
        f"{count} tasks: interquartile mean of the ratio to {aggregates[0].reference} on the same "
        "task and seed"
    )
    table = Table("optimizer", "metric", "ratio [95%]", "verdict", title=title, words=2)
    for name, group in groupby(aggregates, lambda a: a.optimizer):
        table.rule()
        for a in group:
            table.add(name, BY_KEY[a.metric].title, a.ratio, a.verdict)
            name = ""
    return [table]
