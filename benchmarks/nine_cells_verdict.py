"""What the nine cells say: pure numbers from the files of `benchmarks.nine_cells`.

A ratio is the logarithm of a run's number over that of another optimizer's run of the same
meta-seed and inner seed: below 0 is flatter, or a lower loss. Each regularizer is matched in
training loss with its plain twin and the control alone, so that no slower one moves the place where
they are looked at (AdamW and the explicit regularizers are matched all together); the training loss
is among the ratios, as runs do not match to the last digit. A pair of which one has no number, or
none above 0, is left out and counted. Intervals draw meta-seeds first, then tasks, then inner seeds
(`hierarchical_bootstrap`).

A difference *holds* where the means of three or more meta-seeds have its sign, its interval
excludes 0, and at most a tenth of the pairs is left out. The target asks for a curvature part that
is lower by a fifth than the plain twin's and than the control's, and for a lower test loss than
both. It is asked of nine cells with all rows and of nine with few. All are of the same few
optimizers: that six of nine hold is nearly one event.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.lever import CURVATURE
from benchmarks.other_steps import BESIDE
from lo_framework.eval.sharpness.matched import at_equal, shared_levels
from lo_framework.eval.sharpness.metrics import EQUAL, MATCHED, PLACES
from lo_framework.eval.statistics import Array, Estimate

BASELINES = "baselines"  # the group of AdamW and the explicit regularizers
NULL = "null"  # plain twins of different meta-seeds: what a meta-seed alone changes
ABSORBED = ("even_sam", "even_asam", "sam", "gsam", "gam")
REFERENCES = ("none", "control")
TEST, ACCURACY = "test_loss", "test_accuracy"
RATIOS = {
    CURVATURE: "curvature part, r = .1",
    "adaptive l2.curvature@1": "curvature part, adaptive r = 1",
    "top_eigenvalue": "top eigenvalue",
    "trace": "trace",
    TEST: "test loss",
    "train_loss": "train loss",
}
GAIN = "test accuracy, points"
LOWER = math.log(0.8)  # asked of the curvature part
ENOUGH, ENOUGH_ACCURATE = 6, 3  # cells of the nine
LEAST_SEEDS, MOST_LOST = 3, 0.1
MARGIN = 0.5  # points of accuracy that may be lost to AdamW with SAM
SIDES = {"loss": True, "path": False}  # what the probe is compared at equal values of, and falling
PROBED = "cosine_orthogonal"

Cell = Mapping[str, Mapping[str, Any]]  # of one problem: group -> what its file holds
Groups = Mapping[int, Any]  # meta-seed -> group


def load(folder: Path) -> dict[str, dict[str, Any]]:
    """Problem -> group -> what was kept; what is not finished is not there."""
    cells: dict[str, dict[str, Any]] = {}
    for path in sorted((folder / "cells").glob("*.json")):
        content = json.loads(path.read_text("utf-8"))
        cells.setdefault(content["cell"], {})[content["group"]] = content
    return cells


def of_kind(cell: Cell, kind: str, arm: str) -> dict[int, Any]:
    """The groups of one regularizer in a kind of learned optimizer, by meta-seed."""
    start = f"{kind}-{arm}-"
    return {int(name[len(start) :]): cell[name] for name in cell if name.startswith(start)}


def values(group: Any, arm: str, place: str, key: str) -> Array:
    """``[S]``; nan for what is missing, and an accuracy of 0 for what diverged."""
    content = group["arms"].get(arm, {})
    given = content.get(place, {}).get(key) or [None] * group["seeds"]
    lost = content.get("diverged") or [False] * group["seeds"]
    missing = [0.0 if key == ACCURACY and is_lost else math.nan for is_lost in lost]
    return np.array([m if x is None else x for x, m in zip(given, missing)], dtype=np.float64)


def log_ratio(group: Any, arm: str, reference: str, place: str, key: str) -> Array:
    """``[S]``: nan where one of the two has no number, or none above 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        logs = np.log(values(group, arm, place, key)) - np.log(values(group, reference, place, key))
    return np.where(np.isfinite(logs), logs, math.nan)


def gain(group: Any, arm: str, reference: str) -> Array:
    """``[S]``: points of test accuracy that are won, at equal steps."""
    mine, theirs = (values(group, name, EQUAL, ACCURACY) for name in (arm, reference))
    return 100.0 * (mine - theirs)


def hierarchical_bootstrap(
    values: Array, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Estimate:
    """Mean of ``values [M, T, S]`` with the percentile interval of a bootstrap that draws
    meta-seeds first, then tasks, then for each task inner seeds.

    All meta-seeds are used on the same tasks from the same inner seeds, so these are drawn once for
    all of them: drawn anew in each, what tasks and seeds have in common would average out. What is
    nan (a pair of runs of which one has no number) is left out. A resample of three meta-seeds is
    all of one of them once in nine times, so the ends are nearly what the worst and the best
    meta-seed alone say. ``n`` counts what is not left out.

    Raises:
        ValueError: another number of dimensions, or nothing at all.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 3 or not np.isfinite(x).any():
        raise ValueError(f"expected numbers [meta-seeds, tasks, seeds], got shape {list(x.shape)}")
    rng, (M, T, S) = np.random.default_rng(seed), x.shape
    m = rng.integers(0, M, size=(resamples, M, 1, 1))
    t = rng.integers(0, T, size=(resamples, 1, T, 1))
    drawn = x[m, t, rng.integers(0, S, size=(resamples, 1, T, S))].reshape(resamples, -1)
    known = np.isfinite(drawn)
    counts = known.sum(axis=-1)
    means = np.where(known, drawn, 0.0).sum(axis=-1)[counts > 0] / counts[counts > 0]
    order, tail = np.sort(means), 0.5 * (1.0 - level)
    low, high = order[math.floor(tail * means.size)], order[-1 - math.floor(tail * means.size)]
    here = x[np.isfinite(x)]
    value, n = float(here.mean()), int(here.size)
    return Estimate(value=value, low=float(low), high=float(high), n=n, level=level)


def told(differences: Array, level: float = 0.95, resamples: int = 2000) -> dict[str, Any]:
    """Mean, interval, the means of the meta-seeds and what was left out, of ``[M, S]`` or
    ``[M, T, S]``.
    """
    x = differences if differences.ndim == 3 else differences[:, None, :]
    known = np.isfinite(x)
    means = [float(row[ok].mean()) if ok.any() else None for row, ok in zip(x, known)]
    content: dict[str, Any] = {"meta_seeds": means, "left out": int((~known).sum()), "of": x.size}
    content["cells"] = x.shape[1]
    if not known.any():
        return content
    ends = hierarchical_bootstrap(x, level=level, resamples=resamples)
    return content | {"value": ends.value, "low": ends.low, "high": ends.high}


def enough(difference: Mapping[str, Any]) -> bool:
    """Whether there are as many meta-seeds and pairs as a claim needs."""
    means = [x for x in difference["meta_seeds"] if x is not None]
    few_lost = difference["left out"] <= MOST_LOST * difference["of"]
    return len(means) >= LEAST_SEEDS and few_lost and "low" in difference


def holds(difference: Mapping[str, Any], most: float = 0.0) -> bool:
    """Whether it is below 0 for every meta-seed, with its interval, and at most ``most``."""
    if not enough(difference) or any(x is None or x >= 0 for x in difference["meta_seeds"]):
        return False
    return bool(difference["high"] < 0 and difference["value"] <= most)


def probe_of(group: Any, arm: str, reference: str, along: str) -> Array:
    """``[S]``: how much more the update of ``arm`` points along the correction than the
    reference's, mean over the levels of loss or path length that both come to.
    """
    differences = np.full(group["seeds"], math.nan)
    runs = (group["arms"].get(name, {}).get("probe", []) for name in (arm, reference))
    for i, pair in enumerate(zip(*runs)):
        if not all(run[PROBED] for run in pair):
            continue
        xs, curves = ([np.array(run[key], float) for run in pair] for key in (along, PROBED))
        levels = shared_levels(xs, falling=SIDES[along])
        both = [at_equal(x, y, levels, falling=SIDES[along])[0] for x, y in zip(xs, curves)]
        gap = both[0] - both[1]
        differences[i] = np.nanmean(gap) if np.isfinite(gap).any() else math.nan
    return differences


def stacked(problems: Sequence[Groups], each: Callable[..., Array], *names: str) -> Array:
    """``[M, T, S]`` of ``each(group, *names)``; nan where a problem lacks a meta-seed that others
    have.
    """
    seeds = sorted({seed for groups in problems for seed in groups})
    known = next(iter(problems[0].values()))
    empty = np.full(known["seeds"], math.nan)
    return np.array(
        [[each(p[seed], *names) if seed in p else empty for p in problems] for seed in seeds]
    )


def compared(problems: Sequence[Groups], arm: str, reference: str) -> dict[str, Any]:
    """Place -> every ratio, and the accuracy that is won, over ``problems`` that are not empty."""
    content: dict[str, Any] = {
        place: {
            key: told(stacked(problems, log_ratio, arm, reference, place, key)) for key in RATIOS
        }
        for place in PLACES
    }
    return content | {GAIN: told(stacked(problems, gain, arm, reference))}


def all_compared(cells: Iterable[Cell], kind: str) -> dict[str, Any]:
    """Regularizer -> reference -> what `compared` gives."""
    content = {}
    every = [*cells]
    for arm in ABSORBED:
        if problems := [groups for cell in every if (groups := of_kind(cell, kind, arm))]:
            content[arm] = {name: compared(problems, arm, name) for name in REFERENCES}
    return content


def of_cell(cell: Cell, learned: str, second: str) -> dict[str, Any]:
    """Ratios, accuracies, probes and verdicts of one problem."""
    ratios, accuracy, verdicts = all_compared([cell], learned), {}, {}
    baselines = cell.get(BASELINES)
    explicit = [name for name in (baselines or {"arms": ()})["arms"] if name.startswith("sam:")]
    for arm, by_reference in ratios.items():
        at = [x[MATCHED] for x in by_reference.values()]
        verdict = verdicts[arm] = {
            "flatter": all(holds(x[CURVATURE], LOWER) for x in at),
            "lower test loss": all(holds(x[TEST]) for x in at),
        }
        groups, no_less = of_kind(cell, learned, arm).values(), []
        for name in explicit:
            theirs = values(baselines, name, EQUAL, ACCURACY)
            mine = np.array([values(group, arm, EQUAL, ACCURACY) for group in groups])
            won = accuracy[f"{arm} - {name}"] = told(100.0 * (mine - theirs), level=0.9)
            no_less.append(enough(won) and won["low"] > -MARGIN)
        if explicit:
            verdict["no less accurate"] = all(no_less)
    if baselines is not None and (first := ABSORBED[0]) in ratios:
        others = [name for name in baselines["arms"] if name not in ("none", first)]
        ratios[first] |= {name: compared([{1: baselines}], first, name) for name in others}
        ratios["none"] = {"adamw": compared([{1: baselines}], "none", "adamw")}
    for name, arm in BESIDE.items():
        if several := of_kind(cell, learned, name):
            ratios.setdefault(arm, {})[name] = compared([several], arm, name)
            ratios[name] = {"none": compared([several], name, "none")}
    if other := of_kind(cell, second, "sam"):
        ratios[f"{second} sam"] = {"none": compared([other], "sam", "none")}
    if NULL in cell:
        first, *others = cell[NULL]["arms"]
        ratios[NULL] = {x: compared([{0: cell[NULL]}], x, first) for x in others}
    probes = {label: dict(each) for label, each in probes_of(cell, learned, second)}
    return {"ratios": ratios, "probe": probes, "accuracy": accuracy, "verdicts": verdicts}


def probes_of(
    cell: Cell, learned: str, second: str
) -> Iterable[tuple[str, list[tuple[str, dict[str, Any]]]]]:
    """What every optimizer's update has more of than its reference's; AdamW with SAM, which
    surely points there, beside AdamW shows what the probe can see.
    """
    pairs = [(of_kind(cell, learned, arm), arm, "none", arm) for arm in ABSORBED]
    pairs += [(of_kind(cell, learned, "sam"), "control", "none", "control")]
    pairs += [(of_kind(cell, second, "sam"), "sam", "none", f"{second} sam")]
    if BASELINES in cell:
        explicit = [x for x in cell[BASELINES]["arms"] if ":" in x]
        pairs += [({0: cell[BASELINES]}, x, "adamw", f"AdamW + {x}") for x in explicit]
    for groups, arm, reference, label in pairs:
        if groups:
            by_side = [
                (side, told(stacked([groups], probe_of, arm, reference, side))) for side in SIDES
            ]
            yield label, by_side


def targets_of(
    content: Mapping[str, Any], cells: Mapping[str, Cell], learned: str, nine: Sequence[str]
) -> dict[str, Any]:
    """Regularizer -> on how many of ``nine`` problems what is asked of it holds."""
    targets = {}
    for arm in ABSORBED:
        verdicts = [content[x]["verdicts"].get(arm, {}) for x in nine if x in content]
        seeds = [s for x in nine if (s := of_kind(cells.get(x, {}), learned, arm))]
        both = sum(v.get("flatter", False) and v.get("lower test loss", False) for v in verdicts)
        accurate = sum(v.get("no less accurate", False) for v in verdicts)
        targets[arm] = {
            "flatter": sum(v.get("flatter", False) for v in verdicts),
            "flatter and lower test loss": both,
            "no less accurate": accurate,
            "measured": len([v for v in verdicts if v]),
            "meta_seeds": min(map(len, seeds), default=0),
            "met": both >= ENOUGH and accurate >= ENOUGH_ACCURATE,
        }
    return targets


def of(
    folder: Path,
    learned: str,
    second: str,
    sets: Mapping[str, Sequence[str]],
    parts: Mapping[str, Iterable[str]],
) -> dict[str, Any]:
    """Everything, from the files in ``folder``.

    Args:
        sets: nine problems each that a target is about.
        parts: problems that are taken together, by what they have in common.
    """
    cells = load(folder)
    content = {name: of_cell(cell, learned, second) for name, cell in cells.items()}
    targets = {name: targets_of(content, cells, learned, nine) for name, nine in sets.items()}
    together = {
        part: all_compared([cells[name] for name in names if name in cells], learned)
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
