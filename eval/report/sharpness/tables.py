"""The tables of a sharpness evaluation as rows of cells, for the terminal and for the page."""

from __future__ import annotations

import math

import numpy as np

from lo_framework.eval.baselines import setting_label
from lo_framework.eval.report import numbers
from lo_framework.eval.report.table import Table
from lo_framework.eval.sharpness.comparison import SAME, Comparison, side_by_side
from lo_framework.eval.sharpness.metrics import EQUAL, FIRST, LAST, PLACES, metrics_at
from lo_framework.eval.sharpness.result import Arm, Result
from lo_framework.eval.sharpness.settings import CHOICES
from lo_framework.eval.statistics import Array, mean_interval

FEW_PAIRS = 3  # more are summed up, and their tables folded


def seeds_of(values: Array, percent: bool = False) -> str | None:
    """Return the mean over the seeds that have the number and half its 95% interval; how many,
    where some lack it.
    """
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return None
    text = numbers.plus_minus(mean_interval(finite), percent)
    return text if finite.size == values.size else f"{text} (n={finite.size})"


def reached(result: Result, task: str, place: str, *, brief: bool = False) -> Table:
    """Show losses, accuracies, gradient norm and curvature; ``brief``: what fits a terminal."""
    arms, steps = _arms(result, task), result.settings["steps"]
    metrics = [
        m
        for m in (*FIRST, *LAST)
        if (m.compared or not brief)
        and any(np.isfinite(arm.values(m.key, place)).any() for arm in arms)
    ]
    table = Table(
        "optimizer",
        "step" if place == EQUAL else "step (median)",
        *(m.title for m in metrics),
        title=f"{task}, {PLACES[place]}",
    )
    for arm in arms:
        if arm.failure:
            table.failed(arm.optimizer)
            continue
        matched = [run.step for run in arm.runs if run.step is not None]
        words = [
            str(steps) if place == EQUAL else f"{np.median(matched):g}" if matched else "never"
        ]
        words += [f"{arm.diverged} diverged"] * bool(arm.diverged)
        if place != EQUAL and arm.censored > arm.diverged:
            words.append(f"{arm.censored - arm.diverged} censored")
        cells = (seeds_of(arm.values(m.key, place), m.percent) for m in metrics)
        table.add(arm.optimizer, ", ".join(words), *cells)
    return table


def by_radius(result: Result, task: str, place: str) -> Table:
    """Show h, its curvature part, R1 and the one-step gap at every radius."""
    fields = {"gap": "h", "curvature": "h − r‖∇L‖", "first_order": "R1", "one_step": "SAM step gap"}
    radii = [f"{r:g}" for r in result.settings["radii"]]
    headers = ("measure", "optimizer", *(f"r = {r}" for r in radii))
    table = Table(*headers, title=f"{task}, {PLACES[place]}: l2 balls", words=2)
    for field, title in fields.items():
        table.rule()
        for arm in _arms(result, task):
            if not arm.failure:
                cells = (seeds_of(arm.values(f"l2.{field}@{r}", place)) for r in radii)
                table.add(title, arm.optimizer, *cells)
    return table


def variants(result: Result, task: str, place: str) -> Table:
    """Show the other neighbourhoods: l-infinity, adaptive, m-sharpness, average case; an empty
    table where the effort has none.
    """
    gaps: dict[str, dict[str, dict[str, str | None]]] = {}
    for arm in _arms(result, task):
        points = [point for run in arm.runs if (point := run.point(place))]
        for name in dict.fromkeys(name for point in points for name in point["balls"]):
            balls = [point["balls"][name] for point in points if name in point["balls"]]
            for i, label in enumerate(balls[0]["labels"] if name != "l2" else ()):
                values = np.array([ball["gap"][i] for ball in balls], dtype=np.float64)
                cells = gaps.setdefault(name, {}).setdefault(label, {})
                cells[arm.optimizer] = seeds_of(values)
    labels = [arm.optimizer for arm in _arms(result, task) if not arm.failure]
    title = f"{task}, {PLACES[place]}: gap L(w + d) − L(w) in other neighbourhoods"
    table = Table("neighbourhood", "radius", *labels, title=title, words=2)
    for name, radii in gaps.items():
        table.rule()
        for radius, cells in radii.items():
            table.add(name, radius, *map(cells.get, labels))
    return table


def differences(
    result: Result, comparisons: list[Comparison], task: str, a: str, b: str, *, brief: bool = False
) -> Table:
    """Show ``a`` minus ``b``; ``brief``: only what an uncorrected interval sets apart from zero."""
    titles = {m.key: m for m in metrics_at(result.settings["radii"])}
    headers = ("metric", "equal steps: difference", "Holm", "matched loss: difference", "Holm")
    table = Table(*headers, title=f"{task}: {a} minus {b}")
    for equal, matched in side_by_side(comparisons):
        if (equal.task, equal.a, equal.b) != (task, a, b):
            continue
        if brief and not (_apart(equal) or _apart(matched)):
            continue
        metric = titles[equal.metric]
        cells = (x for c in (equal, matched) for x in _cells(c, metric.percent))
        table.add(metric.title, *cells)
    return table


def _cells(c: Comparison | None, percent: bool) -> tuple[str | None, str | None]:
    if c is None or c.difference is None:
        return None, None
    text = numbers.plus_minus(c.difference, percent)
    text = text.replace("%", " points") if percent else text
    return text + (f" (n={c.difference.n})" if c.missing else ""), c.verdict


def _apart(c: Comparison | None) -> bool:
    """Say whether the uncorrected interval leaves zero out."""
    if c is None or c.difference is None:
        return False
    low, high = c.difference.low, c.difference.high
    return math.isfinite(low) and (low > 0 or high < 0)


def verdicts(result: Result, comparisons: list[Comparison], *, in_words: bool = False) -> list[str]:
    """Say what differs, after Holm's correction and before it: a sentence per pair, task and place;
    where there are many pairs, those without any significant difference share one.

    Args:
        in_words: without symbols.
    """
    metrics = metrics_at(result.settings["radii"])
    titles = {m.key: m.words if in_words else m.title for m in metrics}
    groups: dict[tuple[str, str], dict[tuple[str, str], list[Comparison]]] = {}
    for c in comparisons:
        groups.setdefault((c.task, c.place), {}).setdefault((c.a, c.b), []).append(c)
    lines = []
    for (task, place), by_pair in groups.items():
        quiet = []
        for (a, b), tested in by_pair.items():
            text, sure = _verdict(titles, [c for c in tested if not math.isnan(c.p)])
            if sure or len(by_pair) <= FEW_PAIRS:
                lines.append(f"{task}, {a} against {b}, {PLACES[place]}: {text}")
            else:
                quiet.append(sum(c.verdict == SAME and _apart(c) for c in tested))
        if quiet:
            pairs = f"{len(quiet)} of {len(by_pair)} pairs"
            text = f"nothing significant in {pairs} after Holm's correction"
            count = sum(n > 0 for n in quiet)
            text += f"; without it some interval excludes zero in {count} of them" if count else ""
            lines.append(f"{task}, {PLACES[place]}: {text}")
    return lines


def _verdict(titles: dict[str, str], tested: list[Comparison]) -> tuple[str, bool]:
    """Return the sentence on one pair, and whether anything is significant."""
    if not tested:
        return "too few pairs for a test", False
    sure = [f"{titles[c.metric]} {c.verdict}" for c in tested if c.verdict != SAME]
    only = [titles[c.metric] for c in tested if c.verdict == SAME and _apart(c)]
    text = ", ".join(sure) if sure else "nothing significant"
    text += f" ({len(sure)} of {len(tested)} after Holm's correction)"
    if only:
        words = (
            f"{len(only)} intervals exclude zero" if len(only) > 4 else f"also {', '.join(only)}"
        )
        text += f"; without correction {words}"
    return text, bool(sure)


def costs(result: Result) -> Table:
    """Show costs per task and optimizer, summed over seeds and places; a place measured once for
    both counts once.
    """
    counted = ("losses", "gradients", "hvps", "seconds")
    table = Table(
        *("task", "optimizer", "grads/step", "training s"),
        *("losses", "gradients", "HVPs", "measuring s"),
        title="Costs; losses, gradients and Hessian products (HVPs) are passes over the sample",
        words=2,
    )
    for task in result.tasks:
        for arm in _arms(result, task):
            points = [run.equal for run in arm.runs]
            points += [run.matched for run in arm.runs if run.step != result.settings["steps"]]
            total = {key: sum(p["cost"][key] for p in points if p) for key in counted}
            train = sum(run.train.get("seconds", 0.0) for run in arm.runs)
            cells = (f"{total[key]:.0f}" for key in counted[:3])
            each = f"{arm.gradients_per_step:g}"
            table.add(task, arm.optimizer, each, f"{train:.1f}", *cells, f"{total['seconds']:.1f}")
    return table


def settings_of(result: Result) -> list[str]:
    """Name the setting that every baseline ran at, and what tuning had to do for it."""
    chosen_by = CHOICES[result.settings["choose_by"]]
    return [
        f"{arm.task}, {arm.optimizer}: {line}"
        for arm in result.arms
        if arm.setting
        for line in (f"{setting_label(arm.setting)} (best {chosen_by} on tuning seeds)", *arm.notes)
    ]


def _arms(result: Result, task: str) -> list[Arm]:
    return [result.arm(task, label) for label in result.optimizers]
