"""`evaluate`: pairing, the best of grid, comparisons, verdicts, the JSON form."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from lo_framework.eval.api import evaluate
from lo_framework.eval.report import transfer
from lo_framework.eval.report.transfer import TransferReport
from lo_framework.eval.studies.comparison import compare
from lo_framework.eval.studies.result import FILE, Result
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
