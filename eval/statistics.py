"""Estimates with intervals from few seeds, and what to do with runs that diverged.

Which interval, and why (coverage of a nominal 95% interval, 2000 trials, n = 5 / 10 / 20 seeds):

===========================  =====================  =========================
interval                     normal                 lognormal (sigma .3)
===========================  =====================  =========================
mean, Student t              .954 / .956 / .952     .938 / .938 / .932
mean, bootstrap-t            .950 / .950 / .952     .946 / .945 / .944
mean, percentile bootstrap   .839 / .902 / .929     .825 / .893 / .912
mean, BCa bootstrap          .841 / .901 / .930     .826 / .892 / .911
IQM, percentile bootstrap    .907 / .940 / .952     .898 / .943 / .939
IQM, BCa bootstrap           .896 / .936 / .952     .893 / .940 / .940
IQM, expanded percentile     .940 / .978 / .972     .934 / .977 / .960
===========================  =====================  =========================

So a mean, and a mean of paired differences (nearly symmetric), gets the Student t interval: a
bootstrap of five values cannot know that its own spread is too small. Bootstrap-t covers as well
but is a third wider at n = 5, and undefined when a resample is constant. An interquartile mean
(IQM) has no such theory and gets the *expanded* percentile bootstrap (Hesterberg 2015, "What
teachers should know about the bootstrap"): percentiles moved outwards as Student's t asks.

A run that diverged (its value is not finite) is never dropped: it counts as ``diverged_as``,
infinitely bad unless told otherwise. It makes a mean infinite and its interval unbounded; an IQM
bears up to a quarter of them. Every result says how many there were.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Statistic = Callable[[Array], Array]  # [..., n] -> [...]
INF = math.inf


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A value with its interval, from ``n`` observations of which ``diverged`` were not finite."""

    value: float
    low: float
    high: float
    n: int
    level: float = 0.95
    diverged: int = 0

    def __str__(self) -> str:
        digits, ends = self._decimals(), (self.value, self.low, self.high)
        if digits is None:
            value, low, high = (f"{x:.4g}" for x in ends)
        else:  # + 0.0 turns a rounded -0.0 into 0.0
            value, low, high = (f"{round(x, digits) + 0.0:.{digits}f}" for x in ends)
        text = f"{value} [{low}, {high}]"
        return f"{text} ({self.diverged} of {self.n} diverged)" if self.diverged else text

    def _decimals(self) -> int | None:
        """Decimals that show the width (and a small value inside it) to two digits; None where
        fixed point fails.
        """
        width = self.high - self.low
        largest = max(abs(self.value), abs(self.low), abs(self.high))
        if not (math.isfinite(largest) and width > 0) or largest >= 1e7:
            return None
        digits = 1 - math.floor(math.log10(width))
        if 0.01 * width < abs(self.value) < 0.5 * width:
            digits = min(digits + 1, 1 - math.floor(math.log10(abs(self.value))))
        return max(0, digits) if digits <= 6 else None


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One cell of a table: what happened over the seeds. ``best`` and ``worst`` respect the
    direction asked for.
    """

    mean: Estimate
    iqm: Estimate
    median: float
    best: float
    worst: float
    n: int
    diverged: int


def mean(values: ArrayLike) -> Array:
    """Mean over the last axis; infinite (or nan, if of both signs) where an infinite value is."""
    with np.errstate(invalid="ignore"):
        return np.asarray(values, dtype=np.float64).mean(axis=-1)


def median(values: ArrayLike) -> Array:
    """Median over the last axis, of two infinite middle values too."""
    x = np.sort(np.asarray(values, dtype=np.float64), axis=-1)
    n = x.shape[-1]
    with np.errstate(invalid="ignore"):
        return 0.5 * (x[..., (n - 1) // 2] + x[..., n // 2])


def iqm(values: ArrayLike) -> Array:
    """Interquartile mean over the last axis: the mean of the middle half, values at its edges by
    their fraction.

    Sorted value i occupies [i, i + 1] and weighs by its overlap with [n/4, 3n/4]; so n need not be
    a multiple of four, and ``n = 1`` gives the value itself.
    """
    x = np.sort(np.asarray(values, dtype=np.float64), axis=-1)
    n = x.shape[-1]
    i = np.arange(n)
    weight = np.minimum(i + 1, 0.75 * n) - np.maximum(i, 0.25 * n)
    inside = weight > 0  # cut, not weighed by zero: 0 * inf is nan
    with np.errstate(invalid="ignore"):
        return (x[..., inside] * (weight[inside] / weight[inside].sum())).sum(axis=-1)


def outcomes(values: ArrayLike, diverged_as: float = INF) -> tuple[Array, int]:
    """Float64 values in which whatever is not finite is ``diverged_as``, and how many those were.

    ``diverged_as`` is the worst value of the metric: inf for a loss, -inf (or 0) for an accuracy.
    """
    x = np.array(values, dtype=np.float64)
    if x.size == 0:
        raise ValueError("no values to estimate from")
    bad = ~np.isfinite(x)
    x[bad] = diverged_as
    return x, int(bad.sum())


def mean_interval(values: ArrayLike, *, level: float = 0.95, diverged_as: float = INF) -> Estimate:
    """Mean of ``values [n]`` with Student's t interval; unbounded for ``n = 1`` and with an
    infinite value.
    """
    x, diverged = outcomes(values, diverged_as)
    return _t_interval(x.ravel(), level, diverged)


def paired_difference(
    a: ArrayLike, b: ArrayLike, *, level: float = 0.95, diverged_as: float = INF
) -> Estimate:
    """Mean of ``a - b`` over pairs ``[n]`` that share a seed (initialisation and batches), with
    Student's t interval.

    Pairing removes what the two have in common, which is most of the spread. Where one of a pair
    diverged the difference is infinite, where both did it is undefined and so is the mean (nan):
    compare such arms by `probability_of_improvement`.
    """
    x, y, diverged = _pairs(a, b, diverged_as)
    with np.errstate(invalid="ignore"):
        return _t_interval((x - y).ravel(), level, diverged)


def bootstrap_interval(
    values: ArrayLike,
    statistic: Statistic = iqm,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int | np.random.Generator = 0,
    diverged_as: float = INF,
) -> Estimate:
    """``statistic`` (it reduces the last axis) of ``values [n]`` with the expanded percentile
    bootstrap interval.
    """
    one_task = np.asarray(values, dtype=np.float64).reshape(1, -1)
    options: dict[str, Any] = dict(
        level=level, resamples=resamples, seed=seed, diverged_as=diverged_as
    )
    return stratified_bootstrap(one_task, statistic, **options)


def stratified_bootstrap(
    matrix: ArrayLike,
    statistic: Statistic = iqm,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int | np.random.Generator = 0,
    diverged_as: float = INF,
) -> Estimate:
    """``statistic`` of all of ``matrix [tasks, seeds]`` at once, resampling seeds within each task.

    The tasks are the ones we chose, not a sample of some population, so they stay; bring them to
    one scale first. The interval says what other seeds would do, not what other tasks would.
    ``statistic`` maps ``[..., tasks * seeds]`` to ``[...]``.
    """
    x, diverged = outcomes(matrix, diverged_as)
    if x.ndim != 2:
        raise ValueError(f"expected a matrix [tasks, seeds], got shape {list(x.shape)}")
    tasks, seeds = x.shape
    value = float(statistic(x.reshape(-1)))
    if seeds == 1:
        return Estimate(value=value, low=-INF, high=INF, n=x.size, level=level, diverged=diverged)
    index = np.random.default_rng(seed).integers(0, seeds, size=(resamples, tasks, seeds))
    drawn = np.take_along_axis(np.broadcast_to(x, (resamples, tasks, seeds)), index, axis=-1)
    low, high = expanded_percentile(statistic(drawn.reshape(resamples, -1)), level, seeds, tasks)
    return Estimate(
        value=value, low=float(low), high=float(high), n=x.size, level=level, diverged=diverged
    )


def expanded_percentile(
    replicates: Array, level: float, seeds: int, tasks: int = 1
) -> tuple[Array, Array]:
    """Ends of the expanded percentile interval over the first axis of bootstrap ``replicates
    [resamples, ...]``.

    The resampled spread is too small by sqrt((n - 1) / n) and the normal quantile by what Student's
    t adds. Order statistics without interpolation, rounded outwards: they stay right among
    infinities.
    """
    tail = 0.5 * (1.0 - level)
    t = student_t_quantile(1.0 - tail, tasks * (seeds - 1))
    tail = NormalDist().cdf(-math.sqrt(seeds / (seeds - 1)) * t)
    order = np.sort(replicates, axis=0)
    last = order.shape[0] - 1
    return order[math.floor(tail * last)], order[math.ceil((1.0 - tail) * last)]


def probability_of_improvement(
    a: ArrayLike, b: ArrayLike, *, lower_is_better: bool = True, level: float = 0.95
) -> Estimate:
    """How often ``a`` beats ``b`` on the same task and seed (``[n]`` or ``[tasks, seeds]``); a tie
    counts one half.

    Diverged runs lose against finite ones and tie among themselves. Wilson's score interval: right
    at 0 and 1, where a bootstrap of few pairs has no width at all; for ties and for several tasks
    it errs on the wide side.
    """
    x, y, diverged = _pairs(a, b, INF if lower_is_better else -INF)
    wins = (x < y) if lower_is_better else (x > y)
    p, n = float(np.where(x == y, 0.5, wins).mean()), x.size
    z = NormalDist().inv_cdf(0.5 * (1.0 + level))
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # Rounding must not push an end past a count of all or none.
    low, high = min(max(centre - half, 0.0), p), max(min(centre + half, 1.0), p)
    return Estimate(value=p, low=low, high=high, n=n, level=level, diverged=diverged)


def least_p(pairs: int) -> float:
    """The smallest two-sided p-value that a test of ``pairs`` signs can give: all of one sign.

    No test that only takes pairs to be exchangeable (signs, or permutations within pairs) gives
    less; Student's t may, as it takes differences to be normal.
    """
    return min(1.0, 2.0 ** (1 - pairs))


def pairs_needed(tests: int, level: float = 0.05) -> int:
    """So many pairs, with which `least_p` is below ``level`` after Holm's correction for ``tests``
    comparisons.
    """
    return next(n for n in range(1, 1100) if max(tests, 1) * least_p(n) < level)


def summarize(values: ArrayLike, *, lower_is_better: bool = True) -> Summary:
    """Everything a table says about ``values [n]`` of one metric over seeds; diverged runs count as
    infinitely bad.
    """
    worst = INF if lower_is_better else -INF
    x, diverged = outcomes(values, worst)
    ends = (float(x.min()), float(x.max()))
    return Summary(
        mean=mean_interval(values, diverged_as=worst),
        iqm=bootstrap_interval(values, diverged_as=worst),
        median=float(median(x)),
        best=ends[0] if lower_is_better else ends[1],
        worst=ends[1] if lower_is_better else ends[0],
        n=x.size,
        diverged=diverged,
    )


def _t_interval(x: Array, level: float, diverged: int) -> Estimate:
    value, n = float(mean(x)), x.size
    low, high = -INF, INF
    if n > 1 and math.isfinite(value):
        half = student_t_quantile(0.5 * (1.0 + level), n - 1) * float(x.std(ddof=1)) / math.sqrt(n)
        low, high = value - half, value + half
    return Estimate(value=value, low=low, high=high, n=n, level=level, diverged=diverged)


def _pairs(a: ArrayLike, b: ArrayLike, diverged_as: float) -> tuple[Array, Array, int]:
    """Both arms with divergences replaced, and the number of pairs in which one diverged."""
    raw_a, raw_b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if raw_a.shape != raw_b.shape:
        raise ValueError(f"pairs need one shape, got {list(raw_a.shape)} and {list(raw_b.shape)}")
    pairs = int((~(np.isfinite(raw_a) & np.isfinite(raw_b))).sum())
    return outcomes(raw_a, diverged_as)[0], outcomes(raw_b, diverged_as)[0], pairs


def kendall_tau(x: ArrayLike, y: ArrayLike) -> float:
    """Tau-b (ties corrected) over the pairs that are finite in both; nan below two of them, or if
    one is constant.
    """
    a, b = np.asarray(x, dtype=np.float64).ravel(), np.asarray(y, dtype=np.float64).ravel()
    both = np.isfinite(a) & np.isfinite(b)
    a, b = a[both], b[both]
    first, second = np.triu_indices(a.size, 1)
    rise, climb = np.sign(a[first] - a[second]), np.sign(b[first] - b[second])
    pairs = math.sqrt(float(np.abs(rise).sum()) * float(np.abs(climb).sum()))
    return float((rise * climb).sum()) / pairs if pairs else math.nan


@lru_cache(maxsize=256)
def student_t_quantile(probability: float, df: int) -> float:
    """Quantile of Student's t for whole degrees of freedom, by bisection of its exact series."""
    if not 0.0 < probability < 1.0 or df < 1:
        raise ValueError(f"need 0 < probability < 1 and df >= 1, got {probability} and {df}")
    if probability < 0.5:
        return -student_t_quantile(1.0 - probability, df)
    low, high = 0.0, math.pi / 2
    for _ in range(80):
        middle = 0.5 * (low + high)
        below = _student_t_between(middle, df) < 2.0 * probability - 1.0
        low, high = (middle, high) if below else (low, middle)
    return math.sqrt(df) * math.tan(low)


def student_t_tails(t: float, df: int) -> float:
    """P(|T| >= t), the two-sided p-value; to about 1e-15 absolute."""
    return min(1.0, max(0.0, 1.0 - _student_t_between(math.atan(abs(t) / math.sqrt(df)), df)))


def _student_t_between(angle: float, df: int) -> float:
    """P(|T| < t) for t = sqrt(df) tan(angle). Source: Abramowitz & Stegun 26.7.3-4."""
    odd = df % 2
    j = np.arange(1 + odd, df - 2 + odd, 2)
    # Ratios of successive terms of the series: (1/2) (3/4) ... or (2/3) (4/5) ...
    terms = np.concatenate([[1.0], np.cumprod(j / (j + 1.0))]) if df > 1 else np.zeros(1)
    cosine = math.cos(angle)
    inner = math.sin(angle) * float(np.sum(terms * cosine ** (2 * np.arange(terms.size) + odd)))
    return 2.0 / math.pi * (angle + inner) if odd else inner
