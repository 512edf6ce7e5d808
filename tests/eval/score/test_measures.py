"""What a score is made of, against values computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from lo_framework.eval.running.cells import Measured
from lo_framework.eval.score.measures import (
    LAST,
    Scored,
    early_steps,
    over_problems,
    ratios,
    scored,
)
from lo_framework.eval.statistics import iqm

STEPS = 40


def run(*curves, test=1.0):
    """Runs with these curves, one a seed."""
    x = np.array(curves, dtype=np.float32)
    return Measured(
        curves=x[None],
        metrics={"test_loss": np.full((1, len(x)), test)},
        diverged=~np.isfinite(x).all(1)[None],
        seconds_per_step=1e-3,
        parameters=1,
        state_floats=2.0,
    )


def judge(measured, target=None):
    arm = Scored(task="p", optimizer="o", learned=True)
    return scored(arm, {LAST.key: measured, "test_loss": measured}, target)


def falling(rate):
    return 1.0 - rate * np.arange(STEPS)


def test_adamw_is_measured_against_itself():
    adamw = judge(run(falling(0.01), np.r_[np.ones(20), np.full(20, 0.5)]))
    # the last ten of 1, .99, ...: the mean of .61 to .70
    np.testing.assert_allclose(adamw.metrics["last_loss"], [0.655, 0.5], rtol=1e-6)
    # the second one is at its last value once ten batches have it: 20 + 10 steps
    assert adamw.metrics["steps"].tolist() == [40, 30]
    found = ratios(adamw, adamw)
    assert all((x == 1).all() for x in found.values())


def test_twice_as_fast_is_a_speed_up_of_two_thirds_of_the_steps():
    adamw = judge(run(falling(0.01)))
    fast = judge(run(falling(0.02)), adamw.metrics["last_loss"])
    # the mean of ten batches up to step t is 1 - .02 (t - 5.5), at most .655 from t = 22.75 on
    assert fast.metrics["steps"].tolist() == [23]
    assert ratios(fast, adamw)["speed_up"].tolist() == [40 / 23]
    np.testing.assert_allclose(ratios(fast, adamw)["final"], (1 - 0.02 * 34.5) / 0.655, rtol=1e-5)


def test_never_there_is_a_speed_up_of_zero():
    adamw = judge(run(falling(0.01)))
    slow = judge(run(falling(0.009)), adamw.metrics["last_loss"])
    assert np.isnan(slow.metrics["steps"]).all()
    assert ratios(slow, adamw)["speed_up"].tolist() == [0]


def test_a_diverged_run_is_infinitely_bad_wherever_it_was_before():
    adamw = judge(run(falling(0.01)))
    curve = falling(0.02)
    curve[-1] = np.inf
    lost = judge(run(curve, test=np.inf), adamw.metrics["last_loss"])
    found = ratios(lost, adamw)
    assert found["speed_up"].tolist() == [0]
    assert found["final"].tolist() == found["test"].tolist() == [np.inf]
    failed = Scored(task="p", optimizer="o", learned=True, failure="it broke")
    assert ratios(failed, adamw)["final"].tolist() == [np.inf]


def test_the_worst_early_loss_counts_from_the_larger_of_both():
    adamw = judge(run(np.r_[1.0, 2.0, np.ones(STEPS - 2)]))
    curve = np.r_[1.0, 3.0, np.ones(10), 9.0, np.ones(STEPS - 13)]  # 9 is not early
    found = ratios(judge(run(curve), adamw.metrics["last_loss"]), adamw)
    assert found["early"].tolist() == [3.0] and found["spike"].tolist() == [1.5]
    assert [early_steps(steps) for steps in (5, 40, 100, 2000)] == [5, 10, 10, 200]


def test_best_settings_are_per_metric():
    arm = Scored(task="p", optimizer="o", learned=False)
    both = {LAST.key: run(falling(0.01), test=5.0), "test_loss": run(falling(0.0), test=2.0)}
    one = scored(arm, both, None)
    assert one.metrics["test_loss"].tolist() == [2.0]
    np.testing.assert_allclose(one.metrics["last_loss"], [0.655], rtol=1e-6)


def test_aggregates_are_interquartile_means_of_medians():
    rng = np.random.default_rng(0)
    values = [rng.lognormal(size=3) for _ in range(18)]
    estimate = over_problems(values)
    assert estimate.value == pytest.approx(float(iqm([np.median(x) for x in values])))
    assert estimate.low < estimate.value < estimate.high
    # 18 problems: 4.5 of each end are cut, so the fifth and the fourteenth weigh one half
    medians = np.sort([np.median(x) for x in values])
    by_hand = (medians[5:13].sum() + 0.5 * (medians[4] + medians[13])) / 9
    assert estimate.value == pytest.approx(by_hand)
