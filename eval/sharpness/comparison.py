"""Differences between optimizers, paired by seed, with Holm's correction.

At equal steps and at matched training loss alike. A family for Holm's correction (1979, "A simple
sequentially rejective multiple test procedure") is all comparisons on one task at one of the two
places: what a person looks through for something that differs. The verdict is Holm's; intervals are
per comparison.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from lo_framework.eval.sharpness.metrics import EQUAL, PLACES, Metric, metrics_at
from lo_framework.eval.sharpness.result import Result
from lo_framework.eval.statistics import Estimate, paired_difference, student_t_tails

LEVEL = 0.05
LOWER, HIGHER, SAME, NONE = "lower", "higher", "not significant", "too few pairs"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The difference ``a`` minus ``b`` in one metric on one task at one place.

    Attributes:
        difference: mean over the pairs that both measured, with its uncorrected 95% interval.
        missing: pairs that one of the two lacks (diverged, censored or failed): left out, which
            flatters whoever lacks its worst runs.
        p: two-sided, of the paired t test; corrected: by Holm over the family.
    """

    task: str
    place: str
    a: str
    b: str
    metric: str
    difference: Estimate | None
    missing: int
    p: float
    corrected: float
    verdict: str


def pairs(result: Result) -> list[tuple[str, str]]:
    """Pair every two learned optimizers, then every learned one with every baseline."""
    return [
        *combinations(result.learned, 2),
        *((a, b) for a in result.learned for b in result.baselines),
    ]


def compare(result: Result) -> list[Comparison]:
    found: list[Comparison] = []
    for task in result.tasks:
        for place in PLACES:
            wanted = [
                metric
                for metric in metrics_at(result.settings["radii"])
                if metric.compared and not metric.fixed_by(place)
            ]
            family = [
                _compare(result, task, place, a, b, m) for a, b in pairs(result) for m in wanted
            ]
            found += holm(family)
    return found


def _compare(result: Result, task: str, place: str, a: str, b: str, metric: Metric) -> Comparison:
    x, y = (result.arm(task, label).values(metric.key, place) for label in (a, b))
    count = min(x.size, y.size)
    x, y = x[:count], y[:count]  # an arm that failed as a whole has no runs
    both = np.isfinite(x) & np.isfinite(y)
    difference = paired_difference(x[both], y[both]) if both.any() else None
    return Comparison(
        task=task,
        place=place,
        a=a,
        b=b,
        metric=metric.key,
        missing=len(result.seeds) - int(both.sum()),
        difference=difference,
        p=_p(x[both] - y[both]),
        corrected=math.nan,
        verdict=NONE,
    )


def _p(differences: np.ndarray) -> float:
    """Return the p-value of the two-sided t test of mean zero; nan below two pairs."""
    n = differences.size
    if n < 2:
        return math.nan
    mean, spread = float(differences.mean()), float(differences.std(ddof=1))
    if spread == 0:
        return 1.0 if mean == 0 else 0.0
    return student_t_tails(mean / (spread / math.sqrt(n)), n - 1)


def holm(family: Iterable[Comparison]) -> list[Comparison]:
    """Return the comparisons with corrected p-values and verdicts; those without a p-value do not
    count.
    """
    found = list(family)
    order = sorted(
        (i for i, c in enumerate(found) if not math.isnan(c.p)), key=lambda i: found[i].p
    )
    least = 0.0
    for rank, i in enumerate(order):
        least = max(least, min(1.0, (len(order) - rank) * found[i].p))
        difference = found[i].difference
        assert difference is not None
        word = SAME if least >= LEVEL else LOWER if difference.value < 0 else HIGHER
        found[i] = replace(found[i], corrected=least, verdict=word)
    return found


def side_by_side(comparisons: list[Comparison]) -> list[tuple[Comparison, Comparison | None]]:
    """Pair each comparison at equal steps with the same one at matched loss (None where that fixes
    the metric).
    """
    other = {(c.task, c.a, c.b, c.metric): c for c in comparisons if c.place != EQUAL}
    return [(c, other.get((c.task, c.a, c.b, c.metric))) for c in comparisons if c.place == EQUAL]
