"""Learned optimizer against baseline: paired differences, verdicts, steps to matched loss,
aggregate over tasks.

Intervals are per comparison, not corrected for how many comparisons a report makes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lo_framework.eval.running.protocol import METRICS, REFERENCE, Metric, smoothing_width
from lo_framework.eval.statistics import (
    Array,
    Estimate,
    mean,
    outcomes,
    paired_difference,
    probability_of_improvement,
    stratified_bootstrap,
)
from lo_framework.eval.studies.result import Arm, Result
from lo_framework.eval.targets import StepsToTarget, smoothed, steps_to_target, summarize_steps

BETTER, WORSE, SAME = "better", "worse", "no significant difference"
ONE_SEED = "one seed: no verdict"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One learned optimizer against one baseline in one metric on one task.

    Attributes:
        difference: mean over seeds of learned - baseline; ratio: of their means (nan: undefined).
        improvement: how often the learned one is better on a seed.
    """

    task: str
    learned: str
    baseline: str
    metric: str
    difference: Estimate
    ratio: float
    improvement: Estimate
    verdict: str


@dataclass(frozen=True, kw_only=True)
class Aggregate:
    """One optimizer relative to the reference over all tasks: IQM of the ratios on the same task
    and seed.
    """

    optimizer: str
    reference: str
    metric: str
    tasks: int
    ratio: Estimate
    verdict: str


def reference_of(result: Result) -> str | None:
    """AdamW where it ran, with default settings if there are several; else the first baseline."""
    named = [label for label in result.baselines if label.partition(":")[0] == REFERENCE]
    if REFERENCE in named:
        return REFERENCE
    return named[0] if named else result.baselines[0] if result.baselines else None


def compare(result: Result) -> list[Comparison]:
    """Compare every learned optimizer with every baseline, per task and metric that both have."""
    return [
        _compare(result.arm(task, learned), result.arm(task, baseline), metric)
        for task in result.tasks
        for learned in result.learned
        for baseline in result.baselines
        if baseline != learned
        for metric in METRICS
        if metric.key in result.arm(task, learned).chosen
        and metric.key in result.arm(task, baseline).chosen
    ]


def _compare(learned: Arm, baseline: Arm, metric: Metric) -> Comparison:
    a, b = learned.values(metric.key), baseline.values(metric.key)
    assert a is not None and b is not None
    difference = paired_difference(a, b, diverged_as=metric.diverged_as)
    improvement = probability_of_improvement(a, b, lower_is_better=metric.lower_is_better)
    means = [float(mean(outcomes(x, metric.diverged_as)[0])) for x in (a, b)]
    return Comparison(
        task=learned.task,
        learned=learned.optimizer,
        baseline=baseline.optimizer,
        metric=metric.key,
        difference=difference,
        ratio=float(_ratios(np.array(means[:1]), np.array(means[1:]))[0]),
        improvement=improvement,
        verdict=_verdict(difference, 0.0, metric.lower_is_better, fallback=improvement),
    )


def _verdict(
    estimate: Estimate, neutral: float, lower_is_better: bool, fallback: Estimate | None = None
) -> str:
    """Judge by the interval. Where divergence makes the mean infinite, how often the learned one
    won decides.
    """
    if estimate.n == 1:
        return ONE_SEED
    low, high = estimate.low - neutral, estimate.high - neutral
    if not math.isfinite(estimate.value) and fallback is not None:
        low, high, lower_is_better = fallback.low - 0.5, fallback.high - 0.5, False
    if high < 0:
        return BETTER if lower_is_better else WORSE
    if low > 0:
        return WORSE if lower_is_better else BETTER
    return SAME


def _ratios(a: Array, b: Array) -> Array:
    """a / b; two equal values (both infinite or both zero too) are 1."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(a == b, 1.0, a / b)


def aggregate(result: Result) -> list[Aggregate]:
    """All other optimizers relative to the reference, where at least two tasks have both; seeds
    resampled per task.
    """
    reference = reference_of(result)
    found: list[Aggregate] = []
    if reference is None:
        return found
    for optimizer in result.optimizers:
        for metric in METRICS if optimizer != reference else ():
            rows = []
            for task in result.tasks:
                a, b = (
                    result.arm(task, label).values(metric.key) for label in (optimizer, reference)
                )
                if a is not None and b is not None:
                    rows.append(_ratios(*(outcomes(x, metric.diverged_as)[0] for x in (a, b))))
            if len(rows) < 2:
                continue
            ratio = stratified_bootstrap(np.stack(rows), diverged_as=metric.diverged_as)
            alone = len(result.report_seeds) == 1
            verdict = ONE_SEED if alone else _verdict(ratio, 1.0, metric.lower_is_better)
            found.append(
                Aggregate(
                    optimizer=optimizer,
                    reference=reference,
                    metric=metric.key,
                    tasks=len(rows),
                    ratio=ratio,
                    verdict=verdict,
                )
            )
    return found


def matched_steps(result: Result, task: str) -> dict[str, StepsToTarget]:
    """Per optimizer: batches until its smoothed training loss is at most the reference's last one
    of the same seed.

    Both sides are means of the last few minibatch losses (`smoothing_width`), so that neither noise
    nor the smoothing's lag favours one; the reference and every baseline run at their best setting
    for the final loss. A run that never gets there, or diverged, is censored.
    """
    reference = reference_of(result)
    chosen = None if reference is None else result.arm(task, reference).of("final_loss")
    if chosen is None:
        return {}
    width = smoothing_width(result.steps)
    targets = smoothed(chosen.curves, width)[:, -1]
    found = {}
    for optimizer in result.optimizers:
        own = result.arm(task, optimizer).of("final_loss")
        if own is None:
            continue
        steps = range(width, result.steps + 1)
        runs = zip(smoothed(own.curves, width), targets, own.diverged, strict=True)
        found[optimizer] = summarize_steps(
            [None if lost else steps_to_target(curve, float(x), steps) for curve, x, lost in runs]
        )
    return found
