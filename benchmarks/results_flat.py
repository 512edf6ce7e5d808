"""Tables of docs/nine_cells.md: what can be flat, what pays, what must be seen, the lever and the
cells.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.lever import ADAPTIVE, CURVATURE, MEASURED, cell
from benchmarks.nine_cells_verdict import GAIN, RATIOS, shown
from lo_framework.eval.sharpness.metrics import EQUAL, MATCHED
from lo_framework.eval.statistics import Array, Estimate, mean_interval

Rows = Iterator[tuple[Any, ...]]
REFERENCE = "adamw"
TRAINED = "train loss, equal steps"  # what it costs: who is flat and trains badly stands out
# Columns of a CSV file of `lo-eval sharpness`; each a log ratio to tuned AdamW.
COLUMNS = {"l2.curvature(0.1)": MEASURED[CURVATURE]} | {
    key: label for key, label in MEASURED.items() if key != CURVATURE
}


def lever(content: Any) -> Rows:
    """Every way to absorb beside the plain twin, at matched training loss, and what it costs;
    problem by problem.
    """
    keys = MEASURED | ADAPTIVE
    yield "learned optimizer", "way", "problem", *keys.values(), TRAINED
    for name, way in content["ways"].items():
        for problem, measured in way["problems"].items():
            ratios = (cell(at[key]) if key in (at := measured[MATCHED]) else "" for key in keys)
            cost = cell(measured[EQUAL]["train_loss"])
            yield content["learned"], name, problem, *ratios, cost


def cells(content: Any) -> Rows:
    """Each problem of the nine cells: the absorbed regularizers beside twin and control."""
    keys = [key for key in RATIOS if key != "trace"]  # which goes with the top eigenvalue
    yield "problem", "absorbed", "beside", *(RATIOS[key] for key in keys), TRAINED, GAIN
    for problem, of_problem in content["cells"].items():
        for absorbed, by_reference in of_problem["ratios"].items():
            for reference, by_place in by_reference.items():
                matched = (shown(by_place[MATCHED][key]) for key in keys)
                rest = by_place[EQUAL]["train_loss"], by_place[GAIN]
                yield problem, absorbed, reference, *matched, *map(shown, rest)


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


def horizon(content: Any) -> Rows:
    """Slopes by the logarithm of a radius, by the steps that a meta-gradient sees."""
    problems = content["problems"]
    lengths = [*next(iter(problems.values()))]
    yield "problem", "slope of", *(f"{length} steps" for length in lengths)
    for problem, by_length in problems.items():
        for what in by_length[lengths[0]]:
            yield problem, what, *(_slope(by_length[n][what], content["seeds"]) for n in lengths)


def _slope(at: dict[str, Any], seeds: int) -> str:
    is_told = at["needed"] is not None and at["high"] < 0
    words = f"; from {at['needed']:.2g}" if is_told else ""
    return f"{Estimate(value=at['value'], low=at['low'], high=at['high'], n=seeds)}{words}"


def ceiling(content: Any) -> Rows:
    """Every optimizer beside tuned AdamW at matched training loss, paired by seed; at which step
    that is, and what it costs.
    """
    yield "problem", "optimizer", "step", *COLUMNS.values(), TRAINED
    runs = {(r["task"], r["optimizer"], r["place"], r["seed"]): r for r in content}
    seeds = dict.fromkeys(seed for *_, seed in runs)

    def column(task: str, optimizer: str, place: str, key: str) -> Array:
        texts = (runs.get((task, optimizer, place, seed), {}).get(key) for seed in seeds)
        return np.array([float(x) if x else np.nan for x in texts])

    def ratio(task: str, optimizer: str, place: str, key: str) -> str:
        with np.errstate(invalid="ignore", divide="ignore"):
            logs = np.log(column(task, optimizer, place, key) / column(task, REFERENCE, place, key))
        known = logs[np.isfinite(logs)]
        lost = len(logs) - len(known)
        words = f" ({lost} of {len(logs)} left out)" if lost else ""
        return f"{mean_interval(known)}{words}"

    for task, optimizer in dict.fromkeys((task, optimizer) for task, optimizer, *_ in runs):
        at = f"{np.nanmean(column(task, optimizer, MATCHED, 'step')):.0f}"
        ratios = [""] * (len(COLUMNS) + 1)
        if optimizer != REFERENCE:
            ratios = [ratio(task, optimizer, MATCHED, key) for key in COLUMNS]
            ratios.append(ratio(task, optimizer, EQUAL, "train_loss"))
        yield task, optimizer, at, *ratios
