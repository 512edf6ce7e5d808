"""The tables of a transfer evaluation, for the terminal and in Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable

from lo_framework.eval.baselines import setting_label
from lo_framework.eval.report import numbers
from lo_framework.eval.report.origin import origin
from lo_framework.eval.report.ratios import ratios
from lo_framework.eval.report.table import Table
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
from lo_framework.eval.studies.result import Arm, Result

MANY = 8  # optimizers: more of them also get a table of ratios, and a row each in place of a curve
MEASURED = (
    "guard",
    "train_accuracy",
    "valid_loss",
    "valid_accuracy",
)  # no counts of the optimizer's own


def plain(result: Result) -> str:
    """Everything, for a terminal."""
    first, last = "\n".join(heading(result)), "\n".join(notes(result))
    shown = [table.plain() for table in tables(result)]
    return "\n\n".join([first, *shown, last, *failures(result), *overview(result)])


def markdown(result: Result) -> str:
    """The same as a Markdown document, with where it comes from."""
    parts = [
        "# Transfer",
        _bullets(heading(result)),
        *map(_bullets, map(str.splitlines, overview(result))),
    ]
    parts += [*(table.markdown() for table in tables(result)), *failures(result)]
    parts += ["## How to read this", _bullets(notes(result)), *origin(result.provenance)]
    return "\n\n".join(parts) + "\n"


def closing_table(result: Result) -> str:
    """The short form: the first learned optimizer against the reference, for the end of a
    meta-training run.
    """
    learned, reference = result.learned[0], reference_of(result) or "nothing"
    table = Table(
        "task",
        "metric",
        learned,
        f"{reference}, best of grid",
        "difference [95%]",
        "ratio",
        "wins",
        "verdict",
        title=f"{learned} against tuned {reference}: {result.steps} steps, {numbers.seeds(result.report_seeds)}",
    )
    before = ""
    for c in compare(result):
        if (c.learned, c.baseline) == (learned, reference):
            if c.task != before:
                table.rule()
            both = [
                numbers.reached(result.arm(c.task, label), BY_KEY[c.metric])
                for label in (learned, reference)
            ]
            table.add(
                c.task if c.task != before else "", BY_KEY[c.metric].title, *both, *_comparison(c)
            )
            before = c.task
    return "\n\n".join([table.plain(), *failures(result)])


def heading(result: Result) -> list[str]:
    """What was run."""
    lines = [
        f"{result.steps} steps, {numbers.seeds(result.report_seeds)}, the same for every optimizer"
    ]
    if result.baselines:
        lines.append(
            f"baselines tuned on each task with {numbers.seeds(result.tuning_seeds)}, learning rate x schedule"
        )
    return lines + [f"{label}: {file}" for label, file in result.files.items()]


def tables(result: Result) -> list[Table]:
    """Many optimizers at a glance; per task what each reached and how learned ones differ; the
    aggregate over tasks.
    """
    comparisons = compare(result)
    found = ratios([result]) if len(result.optimizers) > MANY else []
    for task in result.tasks:
        arms = [result.arm(task, label) for label in result.optimizers]
        if all(arm.failure for arm in arms):
            continue
        found.append(_reached(result, task, arms))
        if own := [c for c in comparisons if c.task == task]:
            found.append(_differences(own))
    aggregates = _aggregates(result)
    return [*found, aggregates] if aggregates else found


def _reached(result: Result, task: str, arms: list[Arm]) -> Table:
    metrics = [m for m in METRICS if any(m.key in arm.chosen for arm in arms)]
    steps = matched_steps(result, task)
    guarded = any("guard" in runs.metrics for arm in arms for runs in arm.runs)
    headers = ["optimizer", *(m.title for m in metrics)]
    headers += [f"steps to {reference_of(result)}"] * bool(steps) + ["diverged"]
    headers += ["guard"] * guarded + ["ms/step", "grads", "state"]
    parameters = max(arm.parameters for arm in arms)
    table = Table(
        *headers, title=f"{task} ({parameters:,} parameters)", notes=tuple(_settings(arms))
    )
    for arm in arms:
        if arm.failure:
            table.add(arm.optimizer, "FAILED", *[""] * (len(headers) - 2))
            continue
        runs = arm.of("final_loss") or arm.runs[0]
        cells: list[object] = [arm.optimizer, *(numbers.reached(arm, m) for m in metrics)]
        cells += [steps.get(arm.optimizer)] * bool(steps)
        cells.append(f"{int(runs.diverged.sum())} of {len(runs.diverged)}")
        if guarded:
            cells.append(float(runs.metrics["guard"].mean()) if "guard" in runs.metrics else None)
        milliseconds = (
            None if math.isnan(runs.seconds_per_step) else f"{1e3 * runs.seconds_per_step:.2g}"
        )
        cells += [milliseconds, f"{arm.gradients_per_step:.3g}", f"{arm.state_floats:.1f}"]
        table.add(*cells)
    return table


def _settings(arms: Iterable[Arm]) -> list[str]:
    """Which settings a baseline's numbers come from, and what tuning had to do for them."""
    lines = []
    for arm in arms:
        if arm.learned or arm.failure:
            continue
        words = []
        for i, runs in enumerate(arm.runs):
            titles = [BY_KEY[key].title for key, chosen in arm.chosen.items() if chosen == i]
            every = "every metric" if len(arm.runs) == 1 else ", ".join(titles)
            words.append(f"{setting_label(runs.setting)} ({every})")
        lines.append(f"{arm.optimizer}: {'; '.join(words)}")
        counted = (arm.of("final_loss") or arm.runs[0]).metrics
        told = [
            f"{name} {x.mean():.3g}"
            for name, x in counted.items()
            if name not in (*BY_KEY, *MEASURED)
        ]
        lines += [f"{' ' * len(arm.optimizer)}  counted (mean): {', '.join(told)}"] if told else []
        lines += [f"{' ' * len(arm.optimizer)}  {note}" for note in arm.notes]
    return lines


def _differences(comparisons: list[Comparison]) -> Table:
    table = Table("optimizer", "against", "metric", "difference [95%]", "ratio", "wins", "verdict")
    before = ("", "")
    for c in comparisons:
        pair = (c.learned, c.baseline)
        if pair != before:
            table.rule()
        table.add(*(pair if pair != before else ("", "")), BY_KEY[c.metric].title, *_comparison(c))
        before = pair
    return table


def _comparison(c: Comparison) -> list[str | None]:
    wins = f"{c.improvement.value * c.improvement.n:g} of {c.improvement.n}"
    return [
        numbers.difference(c.difference, BY_KEY[c.metric]),
        numbers.ratio(c.ratio),
        wins,
        c.verdict,
    ]


def _aggregates(result: Result) -> Table | None:
    found = aggregate(result)
    if not found:
        return None
    reference = found[0].reference
    count = max(a.tasks for a in found)
    title = (
        f"{count} tasks: interquartile mean of the ratio to {reference} on the same task and seed"
    )
    table = Table("optimizer", "metric", "ratio [95%]", "verdict", title=title)
    before = ""
    for a in found:
        if a.optimizer != before:
            table.rule()
        table.add(
            a.optimizer if a.optimizer != before else "", BY_KEY[a.metric].title, a.ratio, a.verdict
        )
        before = a.optimizer
    return table


def overview(result: Result) -> list[str]:
    """One paragraph: how often each learned optimizer was better or worse than each baseline;
    nothing for one task.
    """
    comparisons = compare(result)
    lines = []
    few = (
        result.baselines
        if len(result.learned) * len(result.baselines) <= 12
        else result.baselines[:1]
    )
    for learned in result.learned if len(result.tasks) > 1 else ():
        for baseline in few:
            if learned == baseline:
                continue
            verdicts = [
                c.verdict for c in comparisons if (c.learned, c.baseline) == (learned, baseline)
            ]
            counts = [f"{word} in {verdicts.count(word)}" for word in (BETTER, WORSE, SAME)]
            if verdicts:
                lines.append(
                    f"{learned} against {baseline}: {', '.join(counts)} of {len(verdicts)} comparisons"
                )
    return ["\n".join(lines)] if lines else []


def failures(result: Result) -> list[str]:
    """One paragraph of what could not be computed, or nothing."""
    if not result.failures:
        return []
    return [
        "\n".join(
            [
                "FAILED",
                *(f"  {arm.task}, {arm.optimizer}: {arm.failure}" for arm in result.failures),
            ]
        )
    ]


def notes(result: Result) -> list[str]:
    """How to read the tables."""
    reference, width = reference_of(result), smoothing_width(result.steps)
    lines = [
        "mean loss: training batches, before each update; final loss: full training split, after the last",
        "±: half of the 95% interval of the mean over seeds (Student's t)",
    ]
    if result.baselines:
        lines += [
            "a baseline's number is from the setting that was best for that metric on the tuning seeds",
            "settings for test loss and test accuracy are chosen by validation data; test data choose nothing",
            "differences are paired by seed; wins: seeds on which it is better than the other, a tie counts one half",
            "verdicts: by the mean difference's interval (by wins where runs diverged); no correction for many tests",
        ]
    if reference is not None:
        lines.append(
            f"steps to {reference}: median batches to a training loss (mean of {width}) <= {reference}'s last"
        )
    return lines + [
        "diverged: runs behind the final loss; ms/step: wall time, noisy, seeds side by side in one process",
        "grads: gradient evaluations per step; state: numbers kept per parameter",
    ]


def _bullets(lines: list[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
