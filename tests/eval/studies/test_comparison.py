"""What is said of two arms, on made-up numbers: paired differences, verdicts, ratios, steps to a
loss.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from lo_framework.eval.report import numbers, transfer
from lo_framework.eval.report.transfer import TransferReport
from lo_framework.eval.statistics import Estimate
from lo_framework.eval.studies.comparison import (
    ONE_SEED,
    SAME,
    aggregate,
    compare,
    matched_steps,
    reference_of,
)
from lo_framework.eval.studies.result import Arm, Result, Runs


def arm(task, label, losses, curves=None, learned=False, accuracy=None):
    losses = np.asarray(losses, dtype=float)
    metrics = {"final_loss": losses} | (
        {} if accuracy is None else {"test_accuracy": np.asarray(accuracy, dtype=float)}
    )
    curves = np.repeat(losses[:, None], 40, axis=1) if curves is None else np.asarray(curves)
    runs = Runs(
        setting={},
        metrics=metrics,
        curves=curves,
        diverged=~np.isfinite(losses),
        seconds_per_step=0.001,
    )
    chosen = dict.fromkeys(metrics, 0)
    return Arm(
        task=task, optimizer=label, learned=learned, runs=(runs,), chosen=chosen, parameters=3
    )


def made(*arms, steps=40):
    tasks = tuple(dict.fromkeys(a.task for a in arms))
    learned = tuple(dict.fromkeys(a.optimizer for a in arms if a.learned))
    baselines = tuple(dict.fromkeys(a.optimizer for a in arms if not a.learned))
    seeds = tuple(range(20_000, 20_000 + len(arms[0].runs[0].diverged)))
    return Result(
        tasks=tasks,
        learned=learned,
        baselines=baselines,
        arms=arms,
        steps=steps,
        tuning_seeds=(1,),
        report_seeds=seeds,
    )


def verdict(ours, theirs, **options):
    return compare(made(arm("t", "lo", ours, learned=True), arm("t", "adamw", theirs), **options))[
        0
    ]


def test_difference_is_paired():
    noise = np.array([0.0, 10.0, -10.0, 30.0, -30.0]) + 100
    c = verdict(noise - [0.9, 1.0, 1.1, 1.0, 1.0], noise)
    assert (
        c.difference.value == pytest.approx(-1)
        and c.difference.high < -0.8
        and c.verdict == "better"
    )
    assert c.ratio == pytest.approx(0.99) and c.improvement.value == 1
    assert verdict(noise, noise - [0.9, 1.0, 1.1, 1.0, 1.0]).verdict == "worse"


def test_no_significant_difference():
    assert verdict([1, 2, 3, 4.0], [2, 1, 4, 3.0]).verdict == SAME
    assert verdict([1, 2.0], [1, 2.0]).verdict == SAME
    assert verdict([1.0], [2.0]).verdict == ONE_SEED


def test_divergence_is_judged_by_wins():
    inf = math.inf
    c = verdict([inf] * 8 + [0.1], [1.0] * 9)
    assert c.verdict == "worse" and c.difference.diverged == 8 and c.ratio == inf
    assert verdict([1.0] * 9, [inf] * 9).verdict == "better"
    assert verdict([inf] * 9, [inf] * 9).verdict == SAME
    assert verdict([inf] + [0.5] * 4, [1.0] * 5).verdict == SAME  # four wins of five could be luck


def test_higher_accuracy_is_better_and_a_diverged_one_is_zero():
    ours = arm("t", "lo", [1.0] * 4, learned=True, accuracy=[0.9, 0.91, 0.92, 0.9])
    theirs = arm("t", "adamw", [1.0] * 4, accuracy=[0.5, 0.51, 0.52, math.nan])
    found = {c.metric: c for c in compare(made(ours, theirs))}
    assert found["test_accuracy"].verdict == "better"
    assert found["test_accuracy"].ratio == pytest.approx(
        (0.9 + 0.91 + 0.92 + 0.9) / (0.5 + 0.51 + 0.52)
    )


def test_aggregate_is_the_iqm_of_ratios_on_the_same_seed():
    seeds = np.array([1.0, 2.0, 3.0, 4.0])
    arms = [arm(t, "lo", 0.5 * s * seeds, learned=True) for t, s in (("a", 1), ("b", 100))]
    arms += [arm(t, "adamw", s * seeds) for t, s in (("a", 1), ("b", 100))]
    (found,) = aggregate(made(*arms))
    assert (found.optimizer, found.tasks, found.verdict) == ("lo", 2, "better")
    assert found.ratio.value == found.ratio.low == found.ratio.high == 0.5
    assert aggregate(made(*[a for a in arms if a.task == "a"])) == []


def test_aggregate_with_divergences():
    inf = math.inf
    arms = [arm(t, "lo", [1.0, inf, inf, 0.5], learned=True) for t in "ab"]
    arms += [arm(t, "adamw", [1.0, inf, 1.0, inf]) for t in "ab"]
    (found,) = aggregate(made(*arms))  # ratios 1, 1 (both diverged), inf, 0
    assert found.ratio.value == pytest.approx(1.0) and found.verdict == SAME


def test_reference():
    def reference(*labels):
        return reference_of(
            made(arm("t", "lo", [1.0], learned=True), *(arm("t", label, [1.0]) for label in labels))
        )

    assert reference("sgdm", "adamw:weight_decay=0.1", "adamw") == "adamw"
    assert reference("sgdm", "adamw:weight_decay=0.1") == "adamw:weight_decay=0.1"
    assert reference("sgdm") == "sgdm" and reference() is None


def test_steps_to_the_references_last_loss():
    t = np.arange(40.0)
    slow, fast, flat = 40 - t, 40 - 2 * t, np.full(40, 30.0)
    ours = arm("t", "lo", [1, 1], learned=True, curves=[fast, flat])
    theirs = arm("t", "adamw", [1, 1], curves=[slow, slow])
    found = matched_steps(made(ours, theirs), "t")
    # smoothed over two: the reference ends at 1.5, which `fast` passes at index 20 ((2 + 0) / 2):
    # batch 21
    assert (found["lo"].reached, found["lo"].censored) == (1, 1)
    assert found["adamw"].median == 40 and found["adamw"].censored == 0
    assert (
        matched_steps(made(arm("t", "lo", [1, 1], learned=True, curves=[fast, fast]), theirs), "t")[
            "lo"
        ].median
        == 21
    )


def test_a_diverged_run_reaches_nothing():
    inf = math.inf
    curve = np.concatenate([np.full(20, 0.1), np.full(20, inf)])
    ours = arm("t", "lo", [inf, 1.0], learned=True, curves=[curve, np.full(40, 0.1)])
    theirs = arm("t", "adamw", [1.0, inf], curves=[np.full(40, 0.2), curve])
    found = matched_steps(made(ours, theirs), "t")
    assert (found["lo"].reached, found["lo"].censored) == (1, 1)
    assert (found["adamw"].reached, found["adamw"].censored) == (1, 1)


@pytest.mark.parametrize(
    ("value", "half", "text"),
    [
        (0.41234, 0.0071, "0.4123 ±0.0071"),
        (12.3456, 3.2, "12.3 ±3.2"),
        (1.5, 0.0, "1.5 ±0"),
        (3.1234e-9, 2e-10, "3.12e-09 ±2e-10"),
        (math.inf, math.nan, "inf"),
        (0.25, math.inf, "0.25"),
    ],
)
def test_plus_minus(value, half, text):
    assert (
        numbers.plus_minus(Estimate(value=value, low=value - half, high=value + half, n=5)) == text
    )


def test_ratio_words():
    got = [numbers.ratio(x) for x in (0.94, 1234.0, 1e-5, 0.0, math.inf, math.nan)]
    assert got == ["0.94x", "1.2e+03x", "1.0e-05x", "0", "inf", None]


def test_many_tasks_get_a_figure_each(tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, "PANELS", 1)
    arms = [arm(task, "lo", [1.0], learned=True) for task in ("a/x", "b:h=2")]
    arms = [dataclasses.replace(a, chosen={"mean_loss": 0, "final_loss": 0}) for a in arms]
    for a in arms:
        a.runs[0].metrics["mean_loss"] = np.ones(1)
    names = [path.name for path in TransferReport(made(*arms)).save(tmp_path)]
    assert names == [
        "transfer.json",
        "transfer.md",
        "transfer.html",
        "curves.png",
        "curves-a-x.png",
        "curves-b-h-2.png",
    ]
    assert all((tmp_path / name).stat().st_size for name in names)
