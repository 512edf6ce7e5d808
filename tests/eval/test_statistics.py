"""Known answers, scipy's answers; intervals cover, and never lose a divergence."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from lo_framework.eval import statistics as st
from lo_framework.eval.statistics import student_t_quantile
from lo_framework.eval.targets import steps_to_target, summarize_steps

INF = math.inf
NAN = math.nan


@pytest.mark.parametrize("df", [1, 2, 3, 4, 5, 9, 10, 19, 100, 501])
@pytest.mark.parametrize("p", [0.01, 0.5, 0.6, 0.95, 0.975, 0.9995])
def test_t_quantile_is_scipys(p, df):
    assert student_t_quantile(p, df) == pytest.approx(stats.t.ppf(p, df), rel=1e-10, abs=1e-12)


@pytest.mark.parametrize(("p", "df"), [(0.0, 3), (1.0, 3), (0.9, 0)])
def test_t_quantile_refuses_nonsense(p, df):
    with pytest.raises(ValueError, match="probability"):
        student_t_quantile(p, df)


def test_iqm_known_answers():
    assert st.iqm([7.0]) == 7.0
    assert st.iqm([1.0, 3.0]) == 2.0
    assert st.iqm([0.0, 3.0, 100.0]) == pytest.approx((0.25 * 0 + 3 + 0.25 * 100) / 1.5)
    assert st.iqm([4.0, 2.0, 1.0, 3.0]) == 2.5
    # n = 5: [1.25, 3.75] keeps .75 of the second and the fourth value.
    assert st.iqm([0.0, 1.0, 2.0, 3.0, 50.0]) == pytest.approx((0.75 * 1 + 2 + 0.75 * 3) / 2.5)


def test_iqm_is_scipys_trimmed_mean_where_quarters_are_whole():
    x = np.random.default_rng(1).normal(size=(3, 20))
    np.testing.assert_allclose(st.iqm(x), stats.trim_mean(x, 0.25, axis=-1), rtol=1e-14)


def test_iqm_of_repeated_data_is_iqm():
    # Four copies of everything make all fractions whole: an independent way to the weights.
    x = np.random.default_rng(2).normal(size=7)
    assert st.iqm(x) == pytest.approx(stats.trim_mean(np.repeat(x, 4), 0.25), rel=1e-14)


def test_median_and_mean_over_last_axis():
    x = np.random.default_rng(3).normal(size=(2, 6))
    np.testing.assert_array_equal(st.median(x), np.median(x, axis=-1))
    np.testing.assert_array_equal(st.mean(x), x.mean(-1))
    assert st.median([1.0, INF, INF, INF]) == INF


def test_mean_interval_is_scipys_t_interval():
    x = np.random.default_rng(4).normal(size=9)
    estimate = st.mean_interval(x, level=0.9)
    low, high = stats.t.interval(0.9, 8, loc=x.mean(), scale=stats.sem(x))
    assert (estimate.low, estimate.high) == pytest.approx((low, high), rel=1e-10)
    assert estimate.n == 9 and estimate.level == 0.9 and estimate.diverged == 0


def test_paired_difference_is_scipys_paired_test():
    rng = np.random.default_rng(5)
    common = 10 * rng.normal(size=8)
    a, b = common + 0.1 * rng.normal(size=8), common + 0.1 * rng.normal(size=8)
    estimate = st.paired_difference(a, b)
    expected = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert (estimate.low, estimate.high) == pytest.approx(tuple(expected), rel=1e-9)
    assert estimate.high - estimate.low < 1.0  # the common part of size 10 is gone


def test_one_value_has_no_interval():
    for estimate in (
        st.mean_interval([2.0]),
        st.bootstrap_interval([2.0]),
        st.paired_difference([3.0], [1.0]),
    ):
        assert (estimate.value, estimate.low, estimate.high) == (2.0, -INF, INF)


def test_bootstrap_agrees_with_scipys_percentiles_at_the_expanded_level():
    x = np.random.default_rng(6).lognormal(size=20)
    ours = st.bootstrap_interval(x, st.mean, resamples=20000, seed=0)
    # scipy takes a level: the one whose percentiles are the expanded ones.
    tail = stats.norm.cdf(-math.sqrt(20 / 19) * stats.t.ppf(0.975, 19))
    theirs = stats.bootstrap(
        (x,),
        np.mean,
        confidence_level=1 - 2 * tail,
        n_resamples=20000,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    spread = theirs.high - theirs.low
    assert ours.low == pytest.approx(theirs.low, abs=0.03 * spread)
    assert ours.high == pytest.approx(theirs.high, abs=0.03 * spread)


def test_bootstrap_is_seeded_and_takes_generators():
    x = np.random.default_rng(7).normal(size=10)
    assert st.bootstrap_interval(x, seed=3) == st.bootstrap_interval(x, seed=3)
    assert st.bootstrap_interval(x, seed=3) == st.bootstrap_interval(
        x, seed=np.random.default_rng(3)
    )
    assert st.bootstrap_interval(x, seed=3) != st.bootstrap_interval(x, seed=4)


def test_stratified_bootstrap_ignores_differences_between_tasks():
    rng = np.random.default_rng(8)
    noise = 0.1 * rng.normal(size=(4, 8))
    apart = noise + np.array([[0.0], [10.0], [20.0], [30.0]])
    estimate = st.stratified_bootstrap(apart, st.mean)
    assert estimate.value == pytest.approx(apart.mean())
    # The spread within tasks only; that between them is a hundred times wider.
    se = math.sqrt(noise.var(axis=1, ddof=1).mean() / 32)
    assert estimate.high - estimate.low == pytest.approx(2 * stats.t.ppf(0.975, 28) * se, rel=0.1)
    assert estimate.n == 32


def test_stratified_bootstrap_wants_a_matrix():
    with pytest.raises(ValueError, match="tasks, seeds"):
        st.stratified_bootstrap([1.0, 2.0])


@pytest.mark.parametrize("n", [5, 10])
def test_intervals_cover(n):
    """600 trials, standard error .009. (At n = 5 the plain percentile bootstrap covers .84 of
    means, .90 of IQMs.)
    """
    rng, trials = np.random.default_rng(9), 600
    truth = st.iqm(np.exp(0.3 * rng.normal(size=400_000)))
    hits_t = hits_iqm = 0
    for trial in range(trials):
        x = rng.normal(size=n)
        hits_t += _covers(st.mean_interval(x), 0.0)
        hits_iqm += _covers(
            st.bootstrap_interval(np.exp(0.3 * x), st.iqm, resamples=400, seed=trial), truth
        )
    assert 0.92 < hits_t / trials < 0.98
    assert 0.91 < hits_iqm / trials < 0.995


def _covers(estimate, truth):
    return estimate.low <= truth <= estimate.high


def test_a_divergence_makes_the_mean_infinite_and_is_counted():
    for bad in (INF, NAN, -INF):
        estimate = st.mean_interval([1.0, 2.0, bad])
        assert (estimate.value, estimate.low, estimate.high) == (INF, -INF, INF)
        assert estimate.diverged == 1 and estimate.n == 3
    assert st.mean_interval([0.9, NAN], diverged_as=-INF).value == -INF
    assert st.mean_interval([0.9, NAN], diverged_as=0.1).value == 0.5


def test_iqm_bears_a_quarter_of_divergences():
    fine = np.arange(8.0)
    two = st.bootstrap_interval([0, 1, 2, 3, 4, 5, NAN, INF])
    assert two.value == st.iqm(fine) and two.diverged == 2
    assert math.isfinite(two.low) and two.high == INF
    assert st.bootstrap_interval([0, 1, 2, 3, 4, NAN, NAN, INF]).value == INF


def test_paired_difference_with_divergences():
    one = st.paired_difference([1.0, NAN, 2.0], [1.0, 1.0, 1.0])
    assert one.value == INF and one.diverged == 1
    assert st.paired_difference([1.0, 2.0], [1.0, NAN]).value == -INF
    both = st.paired_difference([1.0, NAN], [1.0, INF])
    assert math.isnan(both.value) and (both.low, both.high) == (-INF, INF) and both.diverged == 1


def test_probability_of_improvement_is_wilsons_interval():
    a, b = np.zeros(10), np.array([1.0] * 7 + [-1.0] * 3)
    estimate = st.probability_of_improvement(a, b)
    expected = stats.binomtest(7, 10).proportion_ci(method="wilson")
    assert estimate.value == 0.7
    assert (estimate.low, estimate.high) == pytest.approx((expected.low, expected.high), rel=1e-12)
    assert st.probability_of_improvement(a, b, lower_is_better=False).value == pytest.approx(0.3)


def test_probability_of_improvement_ties_divergences_and_ends():
    assert st.probability_of_improvement([1.0, 1.0], [1.0, 2.0]).value == 0.75
    assert st.probability_of_improvement([NAN, 1.0], [INF, NAN]).value == 0.75
    for sign in (True, False):  # a divergence loses, whichever direction is better
        lost = st.probability_of_improvement([NAN], [0.5], lower_is_better=sign)
        assert lost.value == 0.0 and lost.diverged == 1
    always = st.probability_of_improvement(np.zeros(5), np.ones(5))
    assert (always.value, always.high) == (1.0, 1.0) and 0.5 < always.low < 0.6
    matrix = st.probability_of_improvement(np.zeros((2, 5)), np.ones((2, 5)))
    assert matrix.n == 10


def test_pairs_need_one_shape():
    for compare in (st.paired_difference, st.probability_of_improvement):
        with pytest.raises(ValueError, match="one shape"):
            compare([1.0], [1.0, 2.0])


def test_no_values_is_an_error():
    with pytest.raises(ValueError, match="no values"):
        st.mean_interval([])


def test_steps_to_target():
    assert steps_to_target([3.0, 2.0, 1.0, 2.0], 2.0) == 1
    assert steps_to_target([3.0, NAN, 1.0], 1.0, steps=[0, 10, 20]) == 20
    assert steps_to_target([3.0, NAN, INF], 1.0) is None
    with pytest.raises(ValueError, match="2 points but 1 steps"):
        steps_to_target([1.0, 2.0], 1.0, steps=[0])


def test_steps_summary_counts_censored_runs_as_latest():
    summary = summarize_steps([10, None, 30])
    assert (summary.median, summary.reached, summary.censored) == (30.0, 2, 1)
    assert str(summary) == "30 (1 of 3 never)"
    assert str(summarize_steps([None, None, 5])) == "never (2 of 3 never)"
    assert str(summarize_steps([1, 2])) == "1.5"


def test_summary_respects_direction_and_counts():
    loss = st.summarize([3.0, 1.0, 2.0, NAN])
    assert (loss.best, loss.worst, loss.median, loss.n, loss.diverged) == (1.0, INF, 2.5, 4, 1)
    assert loss.mean.value == INF and loss.iqm.value == 2.5
    accuracy = st.summarize([0.3, 0.1, 0.2], lower_is_better=False)
    assert (accuracy.best, accuracy.worst) == (0.3, 0.1)


@pytest.mark.parametrize(
    ("value", "low", "high", "text"),
    [
        (0.216, 0.210, 0.222, "0.216 [0.210, 0.222]"),
        (1234.5, 1200.0, 1269.0, "1234 [1200, 1269]"),
        (-1e-9, -0.05, 0.04, "0.000 [-0.050, 0.040]"),
        (1.2e-8, 1.1e-8, 1.3e-8, "1.2e-08 [1.1e-08, 1.3e-08]"),
        (0.31, 0.213, 2.31, "0.31 [0.21, 2.31]"),
        (0.5, 0.5, 0.5, "0.5 [0.5, 0.5]"),
        (0.216, -INF, INF, "0.216 [-inf, inf]"),
    ],
)
def test_estimates_print_as_many_digits_as_the_interval_has(value, low, high, text):
    assert str(st.Estimate(value=value, low=low, high=high, n=5)) == text


def test_estimates_print_divergences():
    assert str(st.mean_interval([1.0, NAN])) == "inf [-inf, inf] (1 of 2 diverged)"
