"""Matched training loss, equal path length, Kendall's tau and Holm's correction, on hand-made
numbers.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from lo_framework.eval.sharpness.comparison import (
    HIGHER,
    LOWER,
    NONE,
    SAME,
    Comparison,
    compare,
    holm,
)
from lo_framework.eval.sharpness.matched import matched_step, shared_levels, worst_final
from lo_framework.eval.sharpness.result import Arm, Result, SeedRun
from lo_framework.eval.statistics import Estimate, kendall_tau, student_t_quantile, student_t_tails
from lo_framework.eval.studies.sharpness import _match, _Trained


def test_the_target_is_the_worst_finite_last_loss():
    assert worst_final({"a": 0.1, "b": 0.3, "c": None}) == 0.3
    assert worst_final({"a": math.inf, "b": 0.2}) == 0.2
    assert worst_final({"a": None}) is None


def test_the_first_step_at_most_the_target():
    steps, losses = (0, 10, 20, 30), [2.0, 0.5, 0.7, 0.4]
    assert matched_step(steps, losses, 0.5) == 10
    assert matched_step(steps, losses, 0.45) == 30
    assert matched_step(steps, losses, 0.1) is None
    assert matched_step(steps, losses, None) is None
    assert matched_step(steps, [2.0, None, 0.4, None], 0.5) == 20


def run(seed, losses, diverged=False):
    watch = {"steps": list(range(len(losses))), "loss": losses, "path": list(range(len(losses)))}
    return SeedRun(seed=seed, train={"watch": watch, "diverged": diverged})


def test_every_seed_has_its_own_target_and_divergence_is_censored():
    arms = {
        "fast": Arm(
            task="t",
            optimizer="fast",
            learned=True,
            runs=(run(1, [3.0, 1.0, 0.1]), run(2, [3.0, 2.5, 2.4])),
        ),
        "slow": Arm(
            task="t",
            optimizer="slow",
            learned=False,
            runs=(run(1, [3.0, 2.0, 1.5]), run(2, [3.0, 1.0, 0.5])),
        ),
        "bad": Arm(
            task="t",
            optimizer="bad",
            learned=False,
            runs=(
                run(1, [3.0, 9.0, None], diverged=True),
                SeedRun(seed=2, failure="training: RuntimeError"),
            ),
        ),
        "elsewhere": Arm(task="u", optimizer="fast", learned=True, runs=(run(1, [9.0, 8.0, 7.0]),)),
    }
    trained = {name: _Trained(arm, {}) for name, arm in arms.items()}
    for task in ("t", "u"):
        _match([one for one in trained.values() if one.arm.task == task])
    got = {name: [(run.step, run.target) for run in one.arm.runs] for name, one in trained.items()}
    assert got == {
        "fast": [(1, 1.5), (2, 2.4)],
        "slow": [(2, 1.5), (1, 2.4)],
        "bad": [(None, 1.5), (None, 2.4)],
        "elsewhere": [(2, 7.0)],
    }
    assert (
        trained["bad"].arm.censored,
        trained["bad"].arm.diverged,
        trained["fast"].arm.censored,
    ) == (1, 1, 0)


def test_levels_that_every_run_gets_to():
    levels = shared_levels([[4.0, 1.0, 2.0], [3.0, 0.5]], falling=True, count=3)
    np.testing.assert_allclose(levels, [3.0, math.sqrt(3.0), 1.0])
    np.testing.assert_allclose(shared_levels([[0, 5], [1, 3]], falling=False, count=3), [1, 2, 3])
    assert shared_levels([[4.0, 3.0], [2.0, 1.0]], falling=True).size == 0
    assert (
        shared_levels([], falling=True).size == 0
        and shared_levels([[np.nan]], falling=False).size == 0
    )


def test_kendall_tau():
    assert kendall_tau([1, 2, 3], [10, 20, 30]) == 1 and kendall_tau([1, 2, 3], [3, 2, 1]) == -1
    # one tie in x: 5 pairs that differ in x, 6 in y; 4 agree, 1 disagrees
    assert kendall_tau([1, 1, 2, 3], [1, 2, 4, 3]) == pytest.approx(3 / math.sqrt(5 * 6))
    assert math.isnan(kendall_tau([1, 1], [1, 2])) and math.isnan(
        kendall_tau([1.0, np.nan], [1.0, 2.0])
    )


@pytest.mark.parametrize("df", [1, 2, 4, 9, 30])
def test_tails_invert_the_quantile(df):
    for level in (0.9, 0.975, 0.999):
        assert student_t_tails(student_t_quantile(level, df), df) == pytest.approx(
            2 * (1 - level), rel=1e-9
        )
    assert student_t_tails(0.0, df) == 1.0


def one(p, value=1.0):
    difference = Estimate(value=value, low=-1, high=1, n=3)
    kwargs = dict(
        task="t",
        place="equal",
        a="a",
        b="b",
        metric="m",
        missing=0,
        corrected=math.nan,
        verdict=NONE,
    )
    return Comparison(difference=difference, p=p, **kwargs)


def test_holm_steps_down():
    found = holm([one(0.01), one(0.04, -1.0), one(0.03), one(math.nan), one(0.005, -1.0)])
    assert [c.corrected for c in found[:3]] == pytest.approx([0.03, 0.06, 0.06])
    assert [c.verdict for c in found] == [HIGHER, SAME, SAME, NONE, LOWER]


def point(**values):
    return {"values": values, "balls": {}, "failures": {}}


def test_pairs_that_miss_one_side_are_left_out_and_counted():
    losses = {"lo": [1.0, 2.0, 4.0], "adamw": [2.0, 3.0, None]}
    arms = [
        Arm(
            task="t",
            optimizer=label,
            learned=label == "lo",
            runs=tuple(
                SeedRun(seed=i, equal=point(test_loss=x), matched=None)
                for i, x in enumerate(values)
            ),
        )
        for label, values in losses.items()
    ]
    result = Result(
        tasks=("t",),
        learned=("lo",),
        baselines=("adamw",),
        arms=tuple(arms),
        settings={"radii": [0.1]},
        seeds=(0, 1, 2),
        tuning_seeds=(9,),
    )
    found = {(c.place, c.metric): c for c in compare(result)}
    test_loss = found["equal", "test_loss"]
    assert (test_loss.difference.value, test_loss.missing, test_loss.p) == (-1.0, 1, 0.0)
    assert test_loss.verdict == LOWER
    assert found["matched", "test_loss"].verdict == NONE and ("matched", "train_loss") not in found
