"""A picture of a run for TensorBoard: what was saved, and how its candidates did on every probe,
against tuned AdamW.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lo_framework.eval.report.drawing import (
    canvas,
    curve,
    label,
    legend,
    line_handle,
    log_limits,
    looks,
    open_frame,
    png,
    readable_ticks,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INCUMBENT = "incumbent"
DPI = 100
SPAN = 1.1  # of the vertical axis beyond the lines, as a factor


def score_picture(log: Path) -> bytes | None:
    """Return the PNG for the run with this ``metrics.jsonl``; None where nothing was validated.

    On the left the incumbent's score after each outer step, on the right, where there are probes,
    the ratio of each to AdamW under the optimizer that was looked at.
    """
    rows = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    score = [(row["step"], row["score"]) for row in rows if row["score"] is not None]
    probes: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        for name, ratio in row.get("probes", {}).items():
            if ratio is not None:  # not finite
                probes.setdefault(name, []).append((row["step"], ratio))
    return png(_draw(score, probes), DPI) if score else None


def _draw(score: list[tuple[int, float]], probes: dict[str, list[tuple[int, float]]]) -> Figure:
    panels = [({INCUMBENT: score}, "score of what is saved")]
    panels += [(probes, "probes, at each validation")] if probes else []
    figure, grid = canvas(len(panels), len(panels), (5.0, 3.6))
    handles: list[Any] = []
    for axes, (lines, title) in zip(grid, panels, strict=True):
        values = [value for points in lines.values() for _, value in points if value > 0] or [1.0]
        axes.set_ylim(*log_limits(min(*values, 1.0) / SPAN, max(*values, 1.0) * SPAN))
        axes.set_yscale("log")
        readable_ticks(axes.yaxis)
        look = looks(lines)
        for name, points in lines.items():
            x, y = zip(*points)
            curve(axes, x, y, look[name], 1.6, marker="o" * (lines is probes), markersize=3)
        axes.axhline(1.0, color="0.5", linewidth=0.8)
        axes.set_xlabel("outer step")
        axes.set_ylabel("relative to tuned AdamW (1)")
        open_frame(axes, title)
        if lines is probes:
            handles = [line_handle(label(name), own) for name, own in look.items()]
    if handles:
        legend(figure, handles)
    return figure
