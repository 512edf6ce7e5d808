"""The columns of a CSV file that hold what was measured over seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from lo_framework.eval.running.protocol import BY_KEY, METRICS, Metric
from lo_framework.eval.statistics import Array

Measured = Mapping[str, Array]  # name -> [seeds]


def columns(
    measured: Iterable[Measured],
    parts: Sequence[str],
    summary: Callable[[Array, Metric], Sequence[float]],
) -> tuple[list[str], Callable[[Measured], list[float]]]:
    """Return headers, and what makes the cells of one row: parts of every metric in ``measured``,
    then the mean of whatever else was counted; nan for what a row lacks.

    Args:
        summary: returns the ``parts`` of a metric.
    """
    names = dict.fromkeys(name for one in measured for name in one)
    metrics = [metric for metric in METRICS if metric.key in names]
    counts = [name for name in names if name not in BY_KEY]

    def cells(one: Measured) -> list[float]:
        found: list[float] = []
        for metric in metrics:
            values = one.get(metric.key)
            found += [np.nan] * len(parts) if values is None else summary(values, metric)
        return found + [float(np.mean(one.get(name, np.nan))) for name in counts]

    headers = [f"{metric.key}_{part}" for metric in metrics for part in parts]
    return [*headers, *(f"{name}_mean" for name in counts)], cells
