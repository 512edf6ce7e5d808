"""The tables of a transfer evaluation, for the terminal and in Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable

from eval.baselines import setting_label
from eval.comparison import Aggregate, Comparison, aggregate, compare, matched_steps, reference_of
from eval.protocol import BY_KEY, METRICS, Metric, smoothing_width
from eval.report.table import Table
from eval.result import Arm, Result
from eval.statistics import Estimate, StepsToTarget, mean_interval

PERCENT = 100.0


def plain(result: Result) -> str:
    """Everything for a terminal."""
    return "\n\n".join([heading(result), *(table.plain() for table in tables(result)), *failures(result), closing_notes(result)])


def markdown(result: Result) -> str:
    """The same as a Markdown document."""
    parts = ["# Transfer", heading(result), *(table.markdown() for table in tables(result)), *failures(result)]
    return "\n\n".join([*parts, closing_notes(result)]) + "\n"


def heading(result: Result) -> str:
    seeds, tuning = result.report_seeds, result.tuning_seeds
    lines = [f"{result.steps} steps, {_range(seeds)}, paired; baselines tuned per task on {_range(tuning)}"]
    lines += [f"{label}: {file}" for label, file in result.files.items()]
    return "\n".join(lines)


def tables(result: Result) -> list[Table]:
    """Per task what every optimizer reached and how the learned ones differ; then the aggregate over tasks."""
    comparisons = compare(result)
    found = []
    for task in result.tasks:
        arms = [result.arm(task, label) for label in result.optimizers]
        if all(arm.failure for arm in arms):
            continue
        found.append(_reached(result, task, arms))
        own = [c for c in comparisons if c.task == task]
        if own:
            found.append(_differences(own, several=len(result.learned) > 1))
    if aggregates := aggregate(result):
        found.append(_aggregate(aggregates))
    return found


def failures(result: Result) -> list[str]:
    """One paragraph of what could not be computed, or nothing."""
    if not result.failures:
        return []
    return ["FAILED:\n" + "\n".join(f"  {arm.task}, {arm.optimizer}: {arm.failure}" for arm in result.failures)]


def closing_table(result: Result) -> str:
    """The short form: the first learned optimizer against the reference, for the end of a meta-training run."""
    learned, reference = result.learned[0], reference_of(result)
    table = Table(
        "task", "metric", learned, f"{reference} (best of grid)", "difference [95%]", "ratio", "verdict",
        title=f"{learned} on unseen seeds: {result.steps} steps, {_range(result.report_seeds)}",
        notes=(f"{reference} is tuned per task and metric on other seeds. mean loss: training minibatches before each update;",
               "final loss: full training split at the end. Intervals: Student's t over paired seeds."),
    )  # fmt: skip
    for c in compare(result):
        if (c.learned, c.baseline) == (learned, reference):
            metric = BY_KEY[c.metric]
            both = [show(result.arm(c.task, label), metric) for label in (c.learned, c.baseline)]
            table.add(c.task, metric.title, *both, _difference(c), f"{c.ratio:.2f}x", c.verdict)
            if metric is METRICS[-1]:
                table.rule()
    return "\n\n".join([table.plain(), *failures(result)])


def _reached(result: Result, task: str, arms: list[Arm]) -> Table:
    metrics = [m for m in METRICS if any(m.key in arm.chosen for arm in arms)]
    steps = matched_steps(result, task)
    guarded = any("guard" in runs.metrics for arm in arms for runs in arm.runs)
    headers = ["optimizer", *(m.title for m in metrics)]
    headers += [f"steps to {reference_of(result)}"] * bool(steps) + ["diverged"]
    headers += ["guard"] * guarded + ["ms/step", "grads", "state"]
    parameters = max(arm.parameters for arm in arms)
    table = Table(*headers, title=f"{task}, {parameters} parameters", notes=tuple(_settings(arms)))
    for arm in arms:
        if arm.failure:
            table.add(arm.optimizer, "failed", *[None] * (len(headers) - 2))
            continue
        runs = arm.of("final_loss") or arm.runs[0]
        cells: list[object] = [arm.optimizer, *(show(arm, m) for m in metrics)]
        cells += [_steps(steps.get(arm.optimizer))] * bool(steps)
        cells.append(f"{int(runs.diverged.sum())} of {len(runs.diverged)}")
        if guarded:
            cells.append(f"{runs.metrics['guard'].mean():.3g}" if "guard" in runs.metrics else None)
        cells += [_short(1e3 * runs.seconds_per_step), f"{arm.gradients_per_step:g}", f"{arm.state_floats:.1f}"]
        table.add(*cells)
    return table


def _settings(arms: Iterable[Arm]) -> list[str]:
    """Which settings a baseline's numbers come from, and what tuning had to do for them."""
    lines = []
    for arm in arms:
        if arm.learned or arm.failure:
            continue
        titles = [[BY_KEY[key].title for key, chosen in arm.chosen.items() if chosen == i] for i in range(len(arm.runs))]
        pairs = zip(arm.runs, titles, strict=True)
        if len(arm.runs) == 1:
            words = [f"{setting_label(arm.runs[0].setting)} (every metric)"]
        else:
            words = [f"{setting_label(runs.setting)} ({', '.join(names)})" for runs, names in pairs]
        lines.append(f"{arm.optimizer}: {'; '.join(words)}")
        lines += [f"{' ' * len(arm.optimizer)}  {note}" for note in arm.notes]
    return lines


def _differences(comparisons: list[Comparison], several: bool) -> Table:
    first = comparisons[0].learned
    headers = ["learned"] if several else []
    table = Table(*headers, "against" if several else f"{first} against", "metric", "difference [95%]", "ratio", "verdict")
    before = None
    for c in comparisons:
        if before is not None and before != (c.learned, c.baseline):
            table.rule()
        before = (c.learned, c.baseline)
        own = [c.learned] if several else []
        table.add(*own, c.baseline, BY_KEY[c.metric].title, _difference(c), f"{c.ratio:.2f}x", c.verdict)
    return table


def _aggregate(aggregates: list[Aggregate]) -> Table:
    reference, tasks = aggregates[0].reference, max(a.tasks for a in aggregates)
    table = Table(
        "optimizer", "metric", f"relative to {reference} [95%]", "verdict",
        title=f"All {tasks} tasks: interquartile mean of the ratios to {reference} on the same task and seed",
    )  # fmt: skip
    for i, a in enumerate(aggregates):
        if i and aggregates[i - 1].optimizer != a.optimizer:
            table.rule()
        table.add(a.optimizer, BY_KEY[a.metric].title, a.ratio, a.verdict)
    return table


def show(arm: Arm, metric: Metric) -> str | None:
    """``0.4123 ±0.0071``, ``95.8% ±0.6``: mean over seeds and half the width of its 95% interval."""
    values = arm.values(metric.key)
    if values is None:
        return None
    return plus_minus(mean_interval(values, diverged_as=metric.diverged_as), metric.percent)


def plus_minus(estimate: Estimate, percent: bool = False) -> str:
    """The estimate with half of its interval, to the digits that the interval leaves certain."""
    scale, sign = (PERCENT, "%") if percent else (1.0, "")
    value, half = scale * estimate.value, scale * (estimate.high - estimate.low) / 2
    if not math.isfinite(value):
        return "inf"
    if not math.isfinite(half):
        return f"{value:.4g}{sign}"
    if half <= 0:
        return f"{value:.4g}{sign} ±0"
    digits = 1 - math.floor(math.log10(half))
    if digits > 6 or abs(value) >= 1e6:
        return f"{value:.3g}{sign} ±{half:.1g}"
    digits = max(digits, 0)
    return f"{value:.{digits}f}{sign} ±{half:.{digits}f}"


def _difference(c: Comparison) -> str:
    """In the metric's units; accuracies in points."""
    if not BY_KEY[c.metric].percent:
        return str(_silent(c.difference))
    d = c.difference
    scaled = Estimate(value=PERCENT * d.value, low=PERCENT * d.low, high=PERCENT * d.high, n=d.n)
    return f"{scaled} points"


def _silent(estimate: Estimate) -> Estimate:
    """Without the count of divergences, which the table has elsewhere."""
    return Estimate(value=estimate.value, low=estimate.low, high=estimate.high, n=estimate.n)


def _steps(steps: StepsToTarget | None) -> str | None:
    return None if steps is None else str(steps)


def _short(value: float) -> str | None:
    return None if math.isnan(value) else f"{value:.2g}"


def _range(seeds: tuple[int, ...]) -> str:
    return f"{len(seeds)} seeds ({seeds[0]}-{seeds[-1]})" if len(seeds) > 1 else f"seed {seeds[0]}"


def closing_notes(result: Result) -> str:
    """How to read the tables."""
    reference, width = reference_of(result), smoothing_width(result.steps)
    lines = [
        "mean loss: training minibatches, before each update. final loss: full training split after the last step.",
        "±: half of the 95% interval of the mean over seeds (Student's t). Differences are paired by seed; their intervals",
        "are not corrected for the number of comparisons. Each baseline number comes from the setting that was best for",
        "that metric on tuning seeds (for test loss and accuracy: by validation data); test data choose nothing.",
    ]
    if reference is not None:
        lines.append(
            f"steps to {reference}: median batches until the training loss (mean of {width}) is at most {reference}'s last."
        )
    lines += [
        "diverged: of the runs behind the final loss. ms/step: wall time while seeds run side by side in one process;",
        "noisy. grads: gradient evaluations per step. state: numbers kept per parameter.",
    ]
    return "\n".join(lines)
