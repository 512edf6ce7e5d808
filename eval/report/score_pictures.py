"""The picture of `eval score`: performance profiles, and a bar per problem and optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lo_framework.eval.report.drawing import (
    Look,
    canvas,
    label,
    legend,
    line_handle,
    log_labels,
    looks,
    open_frame,
)
from lo_framework.eval.studies.score import Scores

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Value = Callable[[str, str, str], float]  # of a task, an optimizer and a measure

SHOWN = (0.25, 4.0)  # ratios of the picture; what is beyond is drawn at its edge
TICKS = (0.25, 0.5, 0.7, 1.0, 1.4, 2.0, 4.0)
PROFILE = "profile"
TITLES = {
    PROFILE: "share of problems with at most this final loss",
    "final": "final loss / AdamW's (left is better)",
    "speed_up": "speed-up over AdamW (right is better)",
}
CAPTIONS = {
    PROFILE: "Share of problems on which the final loss is at most so many times tuned AdamW's: "
    "higher is better, and at 1 stands the share on which it is no worse.",
    "final": "Final loss over tuned AdamW's on each problem; bars to the left are better. Beyond "
    f"{SHOWN[0]:g} and {SHOWN[1]:g} a bar ends at the edge.",
    "speed_up": "Speed-up over tuned AdamW on each problem; bars to the right are better. A bar "
    "to the left edge may be a run that never reached AdamW's loss.",
}


def draw(result: Scores, value: Value, panels: Sequence[str] = tuple(TITLES)) -> Figure:
    """Draw these panels side by side; only the first one of bars names the problems."""
    tasks, optimizers = result.tasks, result.optimizers
    bars = [name for name in panels if name != PROFILE]
    thick = 0.16 if len(panels) > 1 else 0.1
    height = max(4.0, 1.6 + thick * len(tasks) * (1 + len(optimizers))) if bars else 3.4
    width = 4.33 if len(panels) > 1 or not bars else 6.0
    room = (0.0, 0.0) if bars else (0.0, 0.4)
    figure, grid = canvas(len(panels), len(panels), (width, height), room)
    look = looks(optimizers)
    for axes, name in zip(grid, panels, strict=True):
        if name == PROFILE:
            _profile(axes, tasks, look, value)
        else:
            _bars(axes, tasks, look, value, name, named=name == bars[0])
        axes.set_xscale("log")
        axes.set_xlim(*SHOWN)
        axes.set_xticks(TICKS)
        log_labels(axes.xaxis)
        axes.axvline(1.0, color="black", linewidth=0.8, zorder=3)
        open_frame(axes, TITLES[name])
    legend(figure, [line_handle(label(name), own) for name, own in look.items()])
    return figure


def _profile(axes: Any, tasks: Sequence[str], look: Mapping[str, Look], value: Value) -> None:
    grid = np.geomspace(*SHOWN, 200)
    for optimizer, own in look.items():
        values = np.array([value(task, optimizer, "final") for task in tasks])
        share = [(values <= x).mean() for x in grid]
        axes.plot(grid, share, color=own.colour, dashes=own.dashes or (None, None))
    axes.set_ylim(0, 1.02)


def _bars(
    axes: Any,
    tasks: Sequence[str],
    look: Mapping[str, Look],
    value: Value,
    name: str,
    *,
    named: bool,
) -> None:
    places = np.arange(len(tasks))
    thick = 0.8 / len(look)
    for i, (optimizer, own) in enumerate(look.items()):
        values = np.array([value(task, optimizer, name) for task in tasks])
        at = places + thick * (i - (len(look) - 1) / 2)
        style = dict(color=own.colour, hatch="///" if own.dashes else "", linewidth=0.5)
        shown = np.clip(values, *SHOWN) - 1
        axes.barh(at, shown, thick, left=1, edgecolor="white", zorder=2, **style)
    axes.set_ylim(len(tasks) - 0.5, -0.5)
    axes.set_yticks(places, [label(x) for x in tasks] if named else [], fontsize=8)
