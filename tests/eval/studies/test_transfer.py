"""`evaluate`: pairing, the best of grid, comparisons, verdicts, the JSON form."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest

from lo_framework.eval.api import evaluate
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
from lo_framework.eval.studies.result import FILE, Arm, Result, Runs
from lo_framework.learned import make_learned
from lo_framework.optimizees import make_tasks
from lo_framework.spec import UserError

TINY = "mlp:hidden=4,batch=8"


def plain(result: Result) -> str:
    return TransferReport(result).plain()


def markdown(result: Result) -> str:
    return TransferReport(result).markdown()


@pytest.fixture(scope="module")
def result():
    """A real one: two tasks, a learned optimizer, two baselines."""
    options = dict(
        baselines=("adamw", "sgdm:lr=0.1"), steps=6, seeds=3, tuning_seeds=1, grid_size=2
    )
    return evaluate(make_tasks([TINY, "quadratic"]), make_learned("hyper-adamw"), **options)


def test_every_optimizer_starts_from_the_same_point_and_batches(result):
    for task in result.tasks:
        starts = [
            runs.curves[:, 0]
            for label in result.optimizers
            for runs in result.arm(task, label).runs
        ]
        assert len(starts) >= 3
        for start in starts:  # two vmaps of different size may differ in the last bit
            np.testing.assert_allclose(start, starts[0], rtol=1e-6)
        assert len(set(starts[0].tolist())) == 3


def test_shape_of_the_result(result):
    assert result.report_seeds == (20_000, 20_001, 20_002) and result.tuning_seeds == (10_000,)
    assert result.learned == ("hyper-adamw", "hyper-adamw (step tuned)") and not result.failures
    learned = result.arm(f"{TINY}/digits", "hyper-adamw")
    assert len(learned.runs) == 1 and learned.learned and learned.tuned == ()
    assert set(learned.chosen) == {"mean_loss", "final_loss", "test_loss", "test_accuracy"}
    assert set(result.arm("quadratic", "hyper-adamw").chosen) == {
        "mean_loss",
        "final_loss",
        "test_loss",
    }
    adamw = result.arm(f"{TINY}/digits", "adamw")
    assert len(adamw.tuned) >= 4 and len(adamw.runs) <= 4
    assert adamw.parameters == 310 and adamw.state_floats == pytest.approx(2, abs=0.01)


def test_the_reported_setting_is_the_one_that_tuning_found_best(result):
    for task in result.tasks:
        adamw = result.arm(task, "adamw")
        for key, score in {
            "mean_loss": "mean_loss",
            "final_loss": "final_loss",
            "test_loss": "valid_loss",
        }.items():
            by_score = min(adamw.tuned, key=lambda entry: np.mean(entry["scores"][score]))
            assert adamw.of(key).setting == by_score["setting"] and key in by_score["best_for"]


def test_a_setting_is_run_once_however_many_metrics_it_is_best_for(result):
    for arm in result.arms:
        settings = [tuple(sorted(runs.setting.items())) for runs in arm.runs]
        assert len(settings) == len(set(settings)) and set(arm.chosen.values()) == set(
            range(len(arm.runs))
        )


def test_the_optimizers_own_theta_counts(result):
    learned = make_learned("hyper-adamw")
    learned.load_theta({"default": learned.theta()["default"] + 0.1})
    options = dict(baselines=(), steps=6, seeds=3, step_scales="none")
    got = evaluate(make_tasks("quadratic"), {"mine": learned}, **options)
    assert got.learned == ("mine",) and got.baselines == () and compare(got) == []
    mine, own = (
        got.arms[0].values("mean_loss"),
        result.arm("quadratic", "hyper-adamw").values("mean_loss"),
    )
    assert (mine != own).all()
    again = evaluate("quadratic", learned, **options)
    np.testing.assert_array_equal(again.arms[0].values("mean_loss"), mine)
    assert plain(got) and markdown(got)


def test_json_gives_the_same_result_and_tables_again(result):
    text = FILE.write(result, {"comparisons": []})
    json.loads(text, parse_constant=lambda name: pytest.fail(name))
    again = FILE.read(text)
    assert plain(again) == plain(result) and markdown(again) == markdown(result)
    for arm, other in zip(result.arms, again.arms, strict=True):
        for runs, same in zip(arm.runs, other.runs, strict=True):
            np.testing.assert_array_equal(runs.curves, same.curves)
            for key, values in runs.metrics.items():
                np.testing.assert_array_equal(values, same.metrics[key])
    assert len(text.splitlines()) < 1200  # numbers share lines


def test_a_broken_task_is_reported_in_its_place():
    tasks = make_tasks(["quadratic", "rosenbrock"])

    def broken(*arguments):
        raise RuntimeError("no such kernel")

    tasks[0].loss = broken
    got = evaluate(
        tasks, make_learned("hyper-adamw"), baselines=("adamw",), steps=2, seeds=2, tuning_seeds=1
    )
    assert [arm.task for arm in got.failures] == ["quadratic"] * 3
    text = plain(got)
    assert "FAILED" in text and "no such kernel" in text and "rosenbrock (2 parameters)" in text
    assert "quadratic, adamw: tuning: RuntimeError" in text
    assert plain(FILE.read(FILE.write(got))) == text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(tasks=[]), "nothing to evaluate"),
        (dict(steps=0), "steps.*expected at least 1"),
        (dict(seeds=0), "seeds.*expected at least 1"),
        (dict(tuning_seeds=0), "tuning_seeds.*expected at least 1"),
        (dict(seed_offset=-1), "leave the range"),
        (dict(workers=0), "workers.*expected at least 1"),
        (dict(stpes=3), 'did you mean "steps"'),
        (dict(step_scales="0,1"), '--step-scales "0,1": expected at most 100 positive factors'),
        (dict(baselines=["adamv"]), 'did you mean "adamw"'),
        (dict(baselines=["adamw", "adamw"]), "'adamw' is given twice"),
        (dict(tasks=make_tasks("quadratic") * 2), "'quadratic' is given twice"),
        (dict(learned={"adamw": make_learned("hyper-adamw")}), "'adamw' is given twice"),
    ],
)
def test_bad_input(change, message):
    options = dict(
        tasks=make_tasks("quadratic"),
        learned=make_learned("hyper-adamw"),
        baselines=["adamw"],
        steps=2,
    )
    with pytest.raises(UserError, match=message):
        evaluate(**{**options, **change})


# -- comparisons on made-up numbers ----------------------------------------------------------------


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


def test_curves_panels_use_the_setting_that_is_best_for_the_mean_loss(result):
    for panel in transfer.panels(result):
        assert [curve.label for curve in panel.curves] == [
            "adamw",
            "sgdm:lr=0.1",
            "hyper-adamw",
            "hyper-adamw (step tuned)",
        ]
        expected = result.arm(panel.title, "adamw").of("mean_loss").curves
        np.testing.assert_array_equal(panel.curves[0].values, expected)


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


def test_damaged_results_are_clear_errors(result):
    data = json.loads(FILE.write(result))
    cases = {
        "nonsense": "not valid JSON",
        json.dumps([1]): "not a result",
        json.dumps({**data, "version": 9}): "version 9",
        json.dumps({**data, "arms": [{}]}): "damaged",
    }
    for text, message in cases.items():
        with pytest.raises(UserError, match=message):
            FILE.read(text)


def test_arms_are_frozen(result):
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.arms[0].failure = "x"


def test_tasks_that_no_spec_makes_need_one_worker():
    (task,) = make_tasks("quadratic")
    task.name = "my own/net"
    options = dict(baselines=(), steps=2, seeds=1)
    with pytest.raises(UserError, match="'my own/net' is none; use workers=1"):
        evaluate([task], make_learned("hyper-adamw"), workers=2, **options)
    assert not evaluate([task], make_learned("hyper-adamw"), **options).failures
