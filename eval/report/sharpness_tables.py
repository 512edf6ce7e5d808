"""The tables of a sharpness evaluation as rows of cells, for the terminal and for the page."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lo_framework.eval.baselines import setting_label
from lo_framework.eval.report import numbers
from lo_framework.eval.report.table import Table
from lo_framework.eval.sharpness.comparison import SAME, Comparison, side_by_side
from lo_framework.eval.sharpness.metrics import FIRST, LAST, PLACES, Metric, metrics_of
from lo_framework.eval.sharpness.result import Arm, Result
from lo_framework.eval.statistics import Array, Estimate, mean_interval


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """A table: None among the rows is a rule; the first ``words`` columns are words."""

    title: str
    headers: tuple[str, ...]
    rows: list[tuple[object, ...] | None]
    words: int = 1

    def plain(self) -> str:
        table = Table(*self.headers, title=self.title)
        for row in self.rows:
            table.rule() if row is None else table.add(*row)
        return table.plain()


def seeds_of(values: Array, metric: Metric) -> str | None:
    """Mean over the seeds that have the number and half its 95% interval; how many, where some lack
    it.
    """
    found = values[np.isfinite(values)]
    if found.size == 0:
        return None
    text = numbers.plus_minus(mean_interval(found), metric.percent)
    return text if found.size == values.size else f"{text} (n={found.size})"


def reached(result: Result, task: str, place: str, *, brief: bool = False) -> Sheet:
    """What every optimizer came to: losses, accuracies, gradient norm, curvature; ``brief``: what
    fits a terminal.
    """
    shown = [m for m in (*FIRST, *LAST) if m.compared or not brief]
    shown = [
        m
        for m in shown
        if any(np.isfinite(arm.values(m.key, place)).any() for arm in _arms(result, task))
    ]
    rows: list[tuple[object, ...] | None] = []
    for arm in _arms(result, task):
        if arm.failure:
            rows.append((arm.optimizer, "FAILED", *[""] * len(shown)))
            continue
        steps = [float(run.step) for run in arm.runs if run.step is not None]
        at = (
            f"{np.median(steps):g}" if place != "equal" and steps else str(result.settings["steps"])
        )
        missing = [f"{arm.diverged} diverged"] * bool(arm.diverged)
        if place != "equal" and arm.censored > arm.diverged:
            missing.append(f"{arm.censored - arm.diverged} censored")
        at = ", ".join([at if place == "equal" or steps else "never", *missing])
        rows.append((arm.optimizer, at, *(seeds_of(arm.values(m.key, place), m) for m in shown)))
    headers = (
        "optimizer",
        "step" if place == "equal" else "step (median)",
        *(m.title for m in shown),
    )
    return Sheet(title=f"{task}, {PLACES[place]}", headers=headers, rows=rows)


def by_radius(result: Result, task: str, place: str) -> Sheet:
    """h, its curvature part, R1 and the one-step gap at every radius."""
    fields = {"gap": "h", "curvature": "h − r‖∇L‖", "first_order": "R1", "one_step": "SAM step gap"}
    radii = result.settings["radii"]
    rows: list[tuple[object, ...] | None] = []
    for field, title in fields.items():
        if rows:
            rows.append(None)
        for arm in _arms(result, task):
            if not arm.failure:
                keys = [Metric(key=f"l2.{field}@{r:g}", title="") for r in radii]
                rows.append(
                    (title, arm.optimizer, *(seeds_of(arm.values(m.key, place), m) for m in keys))
                )
    headers = ("measure", "optimizer", *(f"r = {r:g}" for r in radii))
    return Sheet(title=f"{task}, {PLACES[place]}: l2 balls", headers=headers, rows=rows, words=2)


def variants(result: Result, task: str, place: str) -> Sheet | None:
    """The other neighbourhoods: l-infinity, adaptive, m-sharpness, average case; None where the
    effort has none.
    """
    found: dict[tuple[str, str], dict[str, str | None]] = {}
    for arm in _arms(result, task):
        points = [point for run in arm.runs if (point := run.point(place))]
        for name in dict.fromkeys(
            name for point in points for name in point["balls"] if name != "l2"
        ):
            balls = [point["balls"][name] for point in points if name in point["balls"]]
            for i, label in enumerate(balls[0]["labels"]):
                values = np.array([ball["gap"][i] for ball in balls], dtype=np.float64)
                found.setdefault((name, label), {})[arm.optimizer] = seeds_of(
                    values, Metric(key="", title="")
                )
    if not found:
        return None
    labels = [arm.optimizer for arm in _arms(result, task) if not arm.failure]
    rows: list[tuple[object, ...] | None] = []
    before = ""
    for (name, radius), cells in sorted(found.items(), key=lambda item: list(found).index(item[0])):
        if before not in ("", name):
            rows.append(None)
        rows.append((name, radius, *(cells.get(label) for label in labels)))
        before = name
    title = f"{task}, {PLACES[place]}: gap L(w + d) − L(w) in other neighbourhoods"
    return Sheet(title=title, headers=("neighbourhood", "radius", *labels), rows=rows, words=2)


def differences(
    result: Result, comparisons: list[Comparison], task: str, a: str, b: str, *, brief: bool = False
) -> Sheet:
    """``a`` minus ``b``; ``brief``: only what some uncorrected interval sets apart from zero."""
    titles = {m.key: m.title for m in metrics_of(result)}
    percent = {m.key for m in metrics_of(result) if m.percent}
    rows: list[tuple[object, ...] | None] = []
    for equal, matched in side_by_side(comparisons):
        if (equal.task, equal.a, equal.b) != (task, a, b) or (
            brief and not (_apart(equal) or _apart(matched))
        ):
            continue
        cells = [x for c in (equal, matched) for x in _cells(c, equal.metric in percent)]
        rows.append((titles[equal.metric], *cells))
    headers = ("metric", "equal steps: difference", "Holm", "matched loss: difference", "Holm")
    return Sheet(title=f"{task}: {a} minus {b}", headers=headers, rows=rows)


def _cells(c: Comparison | None, percent: bool) -> tuple[str | None, str | None]:
    if c is None or c.difference is None:
        return None, None
    text = numbers.plus_minus(c.difference, percent)
    text = text.replace("%", " points") if percent else text
    return text + (f" (n={c.difference.n})" if c.missing else ""), c.verdict


def _apart(c: Comparison | None) -> bool:
    return c is not None and c.difference is not None and excludes_zero(c.difference)


def excludes_zero(estimate: Estimate) -> bool:
    return math.isfinite(estimate.low) and (estimate.low > 0 or estimate.high < 0)


FEW_PAIRS = 3  # more are summed up, and their tables folded


def verdicts(result: Result, comparisons: list[Comparison]) -> list[str]:
    """What differs, after Holm's correction and before it: a sentence for each pair, task and
    place; where there are many pairs, those without any significant difference share one.
    """
    groups: dict[tuple[str, str], dict[tuple[str, str], list[Comparison]]] = {}
    for c in comparisons:
        groups.setdefault((c.task, c.place), {}).setdefault((c.a, c.b), []).append(c)
    lines = []
    for (task, place), found in groups.items():
        quiet = []
        for (a, b), tested in found.items():
            text, sure = _verdict(result, [c for c in tested if not math.isnan(c.p)])
            if sure or len(found) <= FEW_PAIRS:
                lines.append(f"{task}, {a} against {b}, {PLACES[place]}: {text}")
            else:
                quiet.append(sum(c.verdict == SAME and _apart(c) for c in tested))
        if quiet:
            text = (
                f"nothing significant in {len(quiet)} of {len(found)} pairs after Holm's correction"
            )
            count = sum(n > 0 for n in quiet)
            text += f"; without it some interval excludes zero in {count} of them" if count else ""
            lines.append(f"{task}, {PLACES[place]}: {text}")
    return lines


def _verdict(result: Result, tested: list[Comparison]) -> tuple[str, bool]:
    """Of one pair; and whether anything is significant."""
    if not tested:
        return "too few pairs for a test", False
    titles = {m.key: m.title for m in metrics_of(result)}
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


def costs(result: Result) -> Sheet:
    """Per task and optimizer, summed over seeds and places; a place measured once for both counts
    once.
    """
    rows: list[tuple[object, ...] | None] = []
    for task in result.tasks:
        for arm in _arms(result, task):
            points = [run.equal for run in arm.runs]
            points += [run.matched for run in arm.runs if run.step != result.settings["steps"]]
            total = {
                key: sum(p["cost"][key] for p in points if p)
                for key in ("losses", "gradients", "hvps", "seconds")
            }
            train = sum(run.train.get("seconds", 0.0) for run in arm.runs)
            cells = (f"{total[key]:.0f}" for key in ("losses", "gradients", "hvps"))
            each = f"{arm.gradients_per_step:g}"
            rows.append(
                (task, arm.optimizer, each, f"{train:.1f}", *cells, f"{total['seconds']:.1f}")
            )
    headers = (
        "task",
        "optimizer",
        "grads/step",
        "training s",
        "losses",
        "gradients",
        "HVPs",
        "measuring s",
    )
    return Sheet(
        title="Costs; losses, gradients and Hessian products (HVPs) are passes over the sample",
        headers=headers,
        rows=rows,
        words=2,
    )


def settings_of(result: Result) -> list[str]:
    """Which setting every baseline ran at, and what tuning had to do for it."""
    lines = []
    for arm in result.arms:
        if arm.setting:
            lines.append(
                f"{arm.task}, {arm.optimizer}: {setting_label(arm.setting)} (best final loss on tuning seeds)"
            )
            lines += [f"{arm.task}, {arm.optimizer}: {note}" for note in arm.notes]
    return lines


def _arms(result: Result, task: str) -> list[Arm]:
    return [result.arm(task, label) for label in result.optimizers]
