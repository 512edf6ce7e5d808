"""Tables of docs/nine_cells.md: what can be flat, what pays, and the lever."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.lever import CURVATURE, MEASURED, cell
from lo_framework.eval.sharpness.metrics import MATCHED
from lo_framework.eval.statistics import mean_interval

Rows = Iterator[tuple[Any, ...]]
REFERENCE = "adamw"
# Columns of a CSV file of `lo-eval sharpness`; each a log ratio to tuned AdamW.
COLUMNS = {"l2.curvature(0.1)": MEASURED[CURVATURE]} | {
    key: label for key, label in MEASURED.items() if key != CURVATURE
}


def lever(content: Any) -> Rows:
    """Every way to absorb beside the plain twin, at matched training loss."""
    yield "learned optimizer", "way", *MEASURED.values()
    for name, way in content["ways"].items():
        yield content["learned"], name, *(cell(way[MATCHED][key]) for key in MEASURED)


def incentive(content: Any) -> Rows:
    """The gap of each regularizer by a setting, and the loss on held-out data."""
    yield from _incentive(content, "radius")


def incentive_of_rates(content: Any) -> Rows:
    yield from _incentive(content, "rate")


def _incentive(content: Any, kind: str) -> Rows:
    problems = {label: by_kind[kind] for label, by_kind in content["problems"].items()}
    settings = [*next(iter(next(iter(problems.values())).values()))["settings"]]
    yield "problem", "mean over an episode", *settings, "needed strength"
    for problem, by_absorbed in problems.items():
        for absorbed, each in by_absorbed.items():
            gaps = (f"{at['gap']:.4f}" for at in each["settings"].values())
            strength = each["needed"]
            words = "none will do" if strength is None else f"{strength:.3g}"
            yield problem, f"gap of {absorbed}", *gaps, words
        yield (
            problem,
            "held-out loss",
            *(f"{at['held']:.3f}" for at in each["settings"].values()),
            "",
        )


def ceiling(content: Any) -> Rows:
    """Every optimizer beside tuned AdamW at matched training loss, paired by seed."""
    yield "problem", "optimizer", *COLUMNS.values()
    rows = {(r["task"], r["optimizer"], r["seed"]): r for r in content if r["place"] == MATCHED}
    seeds = dict.fromkeys(seed for *_, seed in rows)
    for task, optimizer in dict.fromkeys((task, optimizer) for task, optimizer, _ in rows):
        if optimizer == REFERENCE:
            continue
        told = []
        for column in COLUMNS:
            pairs = [
                (rows[task, optimizer, s].get(column), rows[task, REFERENCE, s].get(column))
                for s in seeds
            ]
            known = [(float(a), float(b)) for a, b in pairs if a and b]
            logs = np.array([np.log(a / b) for a, b in known if a > 0 and b > 0])
            lost = len(pairs) - len(logs)
            words = f" ({lost} of {len(pairs)} left out)" if lost else ""
            told.append(f"{mean_interval(logs)}{words}")
        yield task, optimizer, *told
