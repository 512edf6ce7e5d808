"""What the nine cells say: pure numbers from the files of `benchmarks.nine_cells`.

A ratio is the logarithm of a run's number over that of another optimizer's run of the same
meta-seed and inner seed, at matched training loss: below 0 is flatter, or a lower loss. A pair of
which one has no number, or none above 0, is left out and counted. Intervals draw meta-seeds first,
then tasks, then inner seeds (`hierarchical_bootstrap`).

A difference *holds* where the means of all meta-seeds have its sign and the interval excludes 0;
the target asks for a curvature part that is lower by a fifth than the plain twin's and than the
control's, and for a lower test loss than both.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lo_framework.eval.sharpness.matched import at_equal, shared_levels
from lo_framework.eval.sharpness.metrics import EQUAL, MATCHED
from lo_framework.eval.statistics import Array, Estimate, hierarchical_bootstrap

BASELINES = "baselines"  # the group of AdamW and the explicit regularizers
ABSORBED = ("sam", "gsam", "gam")
REFERENCES = ("none", "control")
CURVATURE, TEST, ACCURACY = "l2.curvature@0.1", "test_loss", "test_accuracy"
RATIOS = {
    CURVATURE: "curvature part, r = .1",
    "adaptive l2.curvature@1": "curvature part, adaptive r = 1",
    "top_eigenvalue": "top eigenvalue",
    "trace": "trace",
    TEST: "test loss",
}
GAIN = "test accuracy, points"
LOWER = math.log(0.8)  # asked of the curvature part
ENOUGH, ENOUGH_ACCURATE = 6, 3  # cells of the nine
MARGIN = 0.5  # points of accuracy that may be lost to AdamW with the regularizer itself
SIDES = {"loss": True, "path": False}  # what the probe is compared at equal values of, and falling
PROBED = "cosine_orthogonal"

Cell = Mapping[str, Mapping[str, Any]]  # of one problem: group -> what its file holds


def load(folder: Path) -> dict[str, dict[str, Any]]:
    """Problem -> group -> what was kept; what is not finished is not there."""
    cells: dict[str, dict[str, Any]] = {}
    for path in sorted((folder / "cells").glob("*.json")):
        content = json.loads(path.read_text("utf-8"))
        cells.setdefault(content["cell"], {})[content["group"]] = content
    return cells


def of_kind(cell: Cell, kind: str) -> list[Any]:
    """What was kept of a kind of learned optimizer, a meta-seed each."""
    return [cell[name] for name in sorted(cell) if name.rpartition("-")[0] == kind]


def values(group: Any, arm: str, place: str, key: str) -> Array:
    """``[S]``; nan for what is missing."""
    given = group["arms"].get(arm, {}).get(place, {}).get(key, [])
    return np.array([math.nan if x is None else x for x in given], dtype=np.float64)


def log_ratios(groups: Iterable[Any], arm: str, reference: str, key: str) -> Array:
    """``[M, S]``, at matched training loss."""
    with np.errstate(invalid="ignore", divide="ignore"):
        logs = [
            np.log(values(group, arm, MATCHED, key))
            - np.log(values(group, reference, MATCHED, key))
            for group in groups
        ]
    return np.where(np.isfinite(logs), logs, math.nan)


def gains(groups: Iterable[Any], arm: str, reference: str) -> Array:
    """``[M, S]``: points of test accuracy that are won, at equal steps."""
    pairs = (
        (values(group, name, EQUAL, ACCURACY) for name in (arm, reference)) for group in groups
    )
    return np.array([100.0 * (mine - theirs) for mine, theirs in pairs])


def told(differences: Array, level: float = 0.95) -> dict[str, Any]:
    """Mean, interval, the means of the meta-seeds and what was left out, of ``[M, S]`` or
    ``[M, T, S]``.
    """
    x = differences if differences.ndim == 3 else differences[:, None, :]
    known = np.isfinite(x)
    means = [float(row[ok].mean()) if ok.any() else None for row, ok in zip(x, known)]
    content: dict[str, Any] = {"meta_seeds": means, "left out": int((~known).sum()), "of": x.size}
    if not known.any():
        return content
    ends = hierarchical_bootstrap(x, level=level)
    return content | {"value": ends.value, "low": ends.low, "high": ends.high}


def holds(difference: Mapping[str, Any], most: float = 0.0) -> bool:
    """Whether it is below 0 for all of three or more meta-seeds, with its interval, and at most
    ``most``.
    """
    means = difference["meta_seeds"]
    if len(means) < 3 or "high" not in difference or any(x is None or x >= 0 for x in means):
        return False
    return bool(difference["high"] < 0 and difference["value"] <= most)


def probe_of(group: Any, arm: str, reference: str, along: str) -> Array:
    """``[S]``: how much more the update of ``arm`` points along the correction than the
    reference's, mean over the levels of loss or path length that both come to.
    """
    differences = []
    runs = (group["arms"].get(name, {}).get("probe", []) for name in (arm, reference))
    for pair in zip(*runs):
        if not all(run[PROBED] for run in pair):
            differences.append(math.nan)
            continue
        xs, curves = ([np.array(run[key], float) for run in pair] for key in (along, PROBED))
        levels = shared_levels(xs, falling=SIDES[along])
        both = [at_equal(x, y, levels, falling=SIDES[along])[0] for x, y in zip(xs, curves)]
        gap = both[0] - both[1]
        differences.append(float(np.nanmean(gap)) if np.isfinite(gap).any() else math.nan)
    return np.array(differences)


def compared(problems: Sequence[Sequence[Any]], arm: str, reference: str) -> dict[str, Any]:
    """Every ratio, and the accuracy that is won, over ``problems``: a group a meta-seed of each."""

    def over(each: Callable[..., Array], *names: str) -> dict[str, Any]:
        return told(np.stack([each(groups, arm, reference, *names) for groups in problems], axis=1))

    return {**{key: over(log_ratios, key) for key in RATIOS}, GAIN: over(gains)}


def all_compared(problems: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """Regularizer -> reference -> `compared`, of the problems that all meta-seeds have done."""
    most = max((len(groups) for groups in problems), default=0)
    full = [groups for groups in problems if len(groups) == most > 0]
    return {
        arm: {reference: compared(full, arm, reference) for reference in REFERENCES}
        for arm in (ABSORBED if full else ())
    }


def of_cell(cell: Cell, learned: str, second: str) -> dict[str, Any]:
    """Ratios, accuracies, probe and verdicts of one problem."""
    first, other = of_kind(cell, learned), of_kind(cell, second)
    content: dict[str, Any] = {"ratios": all_compared([first]), "probe": {}, "accuracy": {}}
    content["verdicts"] = {}
    explicit = {name.split(":")[0]: name for name in cell.get(BASELINES, {"arms": ()})["arms"]}
    for arm, by_reference in content["ratios"].items():
        content["probe"][arm] = {
            along: told(np.array([probe_of(group, arm, "none", along) for group in first]))
            for along in SIDES
        }
        verdict = content["verdicts"][arm] = {
            "flatter": all(holds(x[CURVATURE], LOWER) for x in by_reference.values()),
            "lower test loss": all(holds(x[TEST]) for x in by_reference.values()),
        }
        if arm in explicit:
            theirs = values(cell[BASELINES], explicit[arm], EQUAL, ACCURACY)
            mine = np.array([values(group, arm, EQUAL, ACCURACY) for group in first])
            gain = content["accuracy"][arm] = told(100.0 * (mine - theirs), level=0.9)
            verdict["no less accurate"] = "low" in gain and gain["low"] > -MARGIN
    if other:
        content["ratios"][f"{second} sam"] = {"none": compared([other], "sam", "none")}
    return content


def of(
    folder: Path,
    learned: str,
    second: str,
    nine: Iterable[str],
    parts: Mapping[str, Iterable[str]],
) -> dict[str, Any]:
    """Everything, from the files in ``folder``.

    Args:
        nine: the problems that targets are about.
        parts: problems that are taken together, by what they have in common.
    """
    cells = load(folder)
    content = {name: of_cell(cell, learned, second) for name, cell in cells.items()}
    targets = {}
    for arm in ABSORBED:
        verdicts = [content[x]["verdicts"].get(arm, {}) for x in nine if x in content]
        both = sum(v.get("flatter", False) and v.get("lower test loss", False) for v in verdicts)
        accurate = sum(v.get("no less accurate", False) for v in verdicts)
        targets[arm] = {
            "flatter": sum(v.get("flatter", False) for v in verdicts),
            "flatter and lower test loss": both,
            "no less accurate": accurate,
            "measured": len(verdicts),
            "met": both >= ENOUGH and accurate >= ENOUGH_ACCURATE,
        }
    together = {
        part: all_compared([of_kind(cells[name], learned) for name in names if name in cells])
        for part, names in parts.items()
    }
    return {"cells": content, "together": together, "targets": targets}


def shown(difference: Mapping[str, Any]) -> str:
    """``-0.22 [-0.31, -0.13] (-0.20 -0.25 -0.21)``: with the mean of each meta-seed."""
    if "value" not in difference:
        return "never"
    ends = {name: difference[name] for name in ("value", "low", "high")}
    means = " ".join("-" if x is None else f"{x:+.2f}" for x in difference["meta_seeds"])
    lost = difference["left out"]
    words = f", {lost} of {difference['of']} left out" if lost else ""
    return f"{Estimate(**ends, n=difference['of'] - lost)} ({means}{words})"
